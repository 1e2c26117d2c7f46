//! `config show`.

use serde_json::json;

use crate::support::{Service, run};

use super::{as_json, command_with, printed};

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_in_force_are_shown_without_secrets_and_without_a_database() {
    let environment = [
        ("DATABASE_URL", "postgres://billing:hunter2@127.0.0.1:1/billing"),
        ("ADMIN_API_KEY", "hunter2"),
        ("COMMIT_LANES", "3"),
    ];
    let output = run(&["config", "show"], &environment).await;
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()), "{text}");
    let line = |name: &str| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("DATABASE_URL"), ["postgres://billing:***@127.0.0.1:1/billing", "environment"]);
    assert_eq!(line("ADMIN_API_KEY"), ["***", "environment"]);
    assert_eq!(line("COMMIT_LANES"), ["3", "environment"]);
    assert_eq!(line("PORT"), ["3001", "default"]);
    assert_eq!(line("METRICS_TOKEN"), ["unset", "default"]);
    assert!(!text.contains("hunter2"), "{text}");
    let output = run(&["config", "show"], &[("PORT", "none")]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("PORT must be "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_in_force_are_those_of_the_database() {
    let service = Service::start(&[]).await;
    service.client().send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":7}"#)).await;
    service.client().send("POST", "/api/v1/admin/pause", None).await;
    let limits = as_json(&service, &["config", "show", "--limits"]).await["limits"].clone();
    assert_eq!((&limits["bulkMaxItems"], &limits["paused"]), (&json!(7), &json!(true)));
    let table = printed(&service, &["config", "show", "--limits"]).await;
    assert!(table.lines().any(|line| line.split_whitespace().eq(["bulkMaxItems", "7", "database"])), "{table}");
    let (code, stdout, _) = command_with(&service, &["config", "show", "--format", "json"], &[]).await;
    assert!(code == 0 && !stdout.contains("limits"), "{stdout}");
}
