//! `agentpay-billing health`, the health check of a container: it asks the service that runs with the same settings.

use crate::support::{Process, SilentServer, new_database, run};

async fn check(host: &str, port: u16) -> (Option<i32>, String, String) {
    // The service's own settings are valid, or it would not run.
    let environment = [("HOST", host), ("PORT", &port.to_string()), ("REQUIRE_API_KEY", "false")];
    let database = ("DATABASE_URL", "postgres://nobody@database.invalid/none");
    let output = run(&["health"], &[&environment[..], &[database]].concat()).await;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn refusal(port: u16, reason: &str) -> (Option<i32>, String, String) {
    (Some(1), String::new(), format!("the service on 127.0.0.1:{port} is not ready: {reason}\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_succeeds_while_the_service_is_ready() {
    let mut service = Process::start(&new_database().await, 0);
    let port = service.address.port();
    let ready = (Some(0), "{\"ready\":true}\n".to_owned(), String::new());
    assert_eq!(check("127.0.0.1", port).await, ready);
    assert_eq!(check("0.0.0.0", port).await, ready);
    service.signal("-TERM");
    service.exit().await;
    let (code, _, told) = check("0.0.0.0", port).await;
    assert!(code == Some(1) && told.contains("is not ready: Connection refused"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_tells_why_the_service_is_not_ready() {
    let (service, _log) = Process::spawn(&[("DATABASE_URL", &SilentServer::start().url("?sslmode=disable"))]);
    service.listens().await;
    let port = service.address.port();
    let body = r#"{"ready":false,"reason":"starting: waiting for the database"}"#;
    assert_eq!(check("127.0.0.1", port).await, refusal(port, body));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_does_not_wait_long_for_a_service_that_is_silent() {
    let port = SilentServer::start().address.port();
    assert_eq!(check("127.0.0.1", port).await, refusal(port, "no response within 5 s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_explains_itself() {
    let output = run(&["health", "--help"], &[]).await;
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0));
    assert!(help.contains("Usage: agentpay-billing health") && help.contains("HOST and PORT"), "{help}");
}
