//! Contract section 22: the log tells of every request, and of no secret, however loud it is.

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Client, binary, free_port, new_database, url, usage};

const ADMIN: &str = "the-operators-own-key";
const PASSWORD: &str = "the-databases-password";
const AGENT: &str = "an-agent-that-only-bodies-name";

/// The log of a service that was used in every way that has to do with a secret, and stopped.
async fn log(database: &str, level: &str) -> (String, Vec<String>) {
    let port = free_port();
    let mut command = binary(&[("DATABASE_URL", database), ("ADMIN_API_KEY", ADMIN), ("REQUIRE_API_KEY", "true")]);
    command.env("LOG_LEVEL", level).env("PORT", port.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary");
    let mut streams = (child.stdout.take().expect("stdout"), child.stderr.take().expect("stderr"));
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        streams.0.read_to_string(&mut log).expect("UTF-8");
        streams.1.read_to_string(&mut log).expect("UTF-8");
        log
    });
    let client = Client::new(([127, 0, 0, 1], port).into());
    while client.try_send("GET", "/health", None).await.is_err() {
        tokio::task::yield_now().await;
    }
    let admin = client.with("x-api-key", ADMIN);
    let made = admin.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let key = made["key"].as_str().expect("a key").to_owned();
    let tenant = client.with("x-api-key", &key).key("k").with("x-request-id", "first");
    assert_eq!(tenant.post("/api/v1/usage?x=1", &usage(AGENT, "s", 1)).await.status, 201);
    assert_eq!(tenant.send("POST", "/api/v1/usage", Some(&format!("{{{AGENT}"))).await.status, 400);
    assert_eq!(client.with("x-api-key", "apk_a-guessed-key").get("/api/v1/api-keys").await.status, 401);
    let prefix = &key[..12];
    assert_eq!(admin.send("DELETE", &format!("/api/v1/api-keys/{prefix}"), None).await.status, 204);
    let stopped = std::process::Command::new("kill").arg(child.id().to_string()).status();
    assert!(stopped.expect("kill").success());
    tokio::task::block_in_place(|| child.wait()).expect("exit");
    let secrets = [ADMIN, PASSWORD, AGENT, "apk_a-guessed-key", &key];
    (reader.join().expect("the log"), secrets.map(str::to_owned).into())
}

/// Members of a line, wherever the shape of the log puts them.
fn fields(line: &str) -> Value {
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert!(line["timestamp"].is_string() && line["target"].is_string(), "{line}");
    let mut fields = line.get("fields").cloned().unwrap_or_else(|| line.clone());
    fields["level"] = line["level"].clone();
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_of_requests_and_keeps_all_secrets() {
    // Nobody asks for this password; a server that does has another one, and never sees this test's.
    let options = new_database().await;
    let is_trusted = std::env::var("TEST_DATABASE_URL").is_err() && options.get_socket().is_some();
    let database = if is_trusted { url(&options.password(PASSWORD)) } else { url(&options) };
    let (log, secrets) = log(&database, "trace").await;
    for secret in &secrets {
        assert!(!log.contains(secret.as_str()), "{secret} is in the log:\n{log}");
    }
    let lines: Vec<Value> = log.lines().map(fields).collect();
    let started = lines.iter().find(|line| line["message"] == "server started").expect("a start");
    assert_eq!((&started["level"], &started["host"]), (&json!("INFO"), &json!("127.0.0.1")));
    assert!(lines.iter().any(|line| line["message"] == "shutdown signal received" && line["signal"] == "SIGTERM"));
    let of_first = |line: &&Value| line["message"] == "request completed" && line["requestId"] == "first";
    let told = lines.iter().find(of_first).expect("the request");
    let expected = [("level", json!("INFO")), ("method", json!("POST")), ("path", json!("/api/v1/usage"))];
    for (name, value) in expected.into_iter().chain([("status", json!(201))]) {
        assert_eq!(told[name], value, "{told}");
    }
    let ms = told["durationMs"].as_f64().expect("a number");
    assert!(ms > 0.0 && ((ms * 10.0).round() / 10.0 - ms).abs() < 1e-9, "{told}");
}
