//! `audit export`.

use agentpay_billing::domain::timestamp::Timestamp;
use serde_json::{Value, json};

use crate::support::Service;

use super::{as_json, printed};

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_exported_oldest_changes_first() {
    let service = Service::start(&[]).await;
    let client = service.client().with("x-request-id", "=1+1");
    for price in 1..=3 {
        client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": price })).await;
        service.clock.advance_ms(10);
    }
    let mut listed = client.get("/api/v1/audit").await.json()["items"].as_array().expect("items").clone();
    listed.reverse();
    assert_eq!(as_json(&service, &["audit", "export"]).await, json!(listed));

    let csv = printed(&service, &["audit", "export"]).await;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "id,changedAt,actor,address,requestId,operation,tenantId,objectId,before,after");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let moment = Timestamp::from_ms(listed[1]["changedAt"].as_i64().expect("ms")).to_rfc_3339();
    let start = format!("{},{moment},anonymous,127.0.0.1,'=1+1,service.updated,public,s,", text(&listed[1]["id"]));
    assert!(lines[2].starts_with(&start) && lines[2].contains(r#"""priceStroops"":2"#), "{csv}");
    assert_eq!(lines.len(), 4);

    let since = as_json(&service, &["audit", "export", "--since", &moment]).await;
    assert_eq!(since, json!(listed[1..]));
    let none = printed(&service, &["audit", "export", "--since", "2999-01-01", "--format", "json"]).await;
    assert_eq!(none, "[\n]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_many_pages_has_each_change_once() {
    let service = Service::start(&[]).await;
    let rows = "INSERT INTO audit_log (changed_at, actor, operation)
        SELECT now() - n / 100 * interval '1 ms', 'cli', 'service.updated' FROM generate_series(1, 2500) AS n";
    sqlx::raw_sql(rows).execute(&service.pool).await.expect("changes");
    let exported = as_json(&service, &["audit", "export"]).await;
    let mut ids: Vec<&str> =
        exported.as_array().expect("a list").iter().map(|entry| entry["id"].as_str().expect("an id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_rotates_a_key() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]).await;
    let made: Value =
        serde_json::from_str(&printed(&service, &["keys", "create", "--label", "l"]).await).expect("JSON");
    let prefix = &made["key"].as_str().expect("a key")[..12];
    let rotate = ["keys", "rotate", prefix, "--overlap-seconds", "60"];
    let rotated: Value = serde_json::from_str(&printed(&service, &rotate).await).expect("JSON");
    assert_eq!((&rotated["tenantId"], &rotated["previous"]["prefix"]), (&made["tenantId"], &json!(prefix)));
    for key in [&made["key"], &rotated["key"]] {
        let client = service.client().with("x-api-key", key.as_str().expect("a key"));
        assert_eq!(client.send("POST", "/api/v1/usage", Some("{}")).await.status, 400);
    }
    let (code, _, stderr) = super::command(&service, &rotate).await;
    assert_eq!((code, stderr), (1, format!("api key {prefix} was already rotated\n")));
    let entry = as_json(&service, &["audit", "export"]).await[1].clone();
    assert_eq!((&entry["actor"], &entry["operation"]), (&json!("cli"), &json!("api_key.rotated")));
}
