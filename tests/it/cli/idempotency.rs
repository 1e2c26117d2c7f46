//! `idempotency show` and `idempotency stats`.

use serde_json::{Value, json};

use crate::support::{Service, store_records, usage};

use super::{as_json, command, printed, tenant};

fn pair() -> Value {
    json!({ "agent": "a", "serviceId": "s" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_shows_its_request_its_response_and_what_it_recorded() {
    let service = Service::start(&[]).await;
    let (tenant, key) = tenant(&service, "acme").await;
    let client = service.client().with("x-api-key", &key);
    let keyed = client.key("order-1").with("x-request-id", "r-1");
    keyed.post("/api/v1/usage", &usage("a", "s", 3)).await;
    // Others of the same moment, some with the same key: the clock stands still between two requests at times.
    for agent in ["a", "b"] {
        client.post("/api/v1/usage", &usage(agent, "s", 3)).await;
        service.client().key("order-1").post("/api/v1/usage", &usage(agent, "s", 3)).await;
    }
    let shown = as_json(&service, &["idempotency", "show", "order-1", "--tenant", &tenant]).await;
    let (created_at, expires_at) = (&shown["createdAt"], &shown["expiresAt"]);
    assert_eq!(expires_at.as_i64().expect("ms") - created_at.as_i64().expect("ms"), 86_400_000);
    let expected = json!({
        "key": "order-1", "caller": format!("tenant:{tenant}"), "method": "POST", "path": "/api/v1/usage",
        "requestId": "r-1", "status": 201, "response": {"agent": "a", "serviceId": "s", "total": 3},
        "createdAt": created_at, "expiresAt": expires_at, "isLive": true,
        "usage": [{"agent": "a", "serviceId": "s", "requests": 3, "total": 3}], "settlements": [],
    });
    assert_eq!(shown, expected);
    let table = printed(&service, &["idempotency", "show", "order-1", "--address", "127.0.0.1"]).await;
    for line in [
        "caller       ip:127.0.0.1",
        "request      POST /api/v1/usage",
        "status       201",
        r#"response     {"agent":"a","serviceId":"s","total":3}"#,
        r#"usage        {"agent":"a","serviceId":"s","requests":3,"total":3}"#,
    ] {
        assert!(table.lines().any(|own| own == line), "{line}:\n{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_shows_its_settlements_also_when_its_record_is_gone() {
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000")]).await;
    let (tenant, key) = tenant(&service, "acme").await;
    let client = service.client().with("x-api-key", &key);
    let items = json!({ "items": [usage("a", "s", 3), usage("a", "t", 4)] });
    client.key("bulk").post("/api/v1/usage/bulk", &items).await;
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    client.key("bill").post("/api/v1/settle", &pair()).await;
    // Another client's, of the tenant that both share.
    for address in ["192.0.2.1", "192.0.2.2"] {
        service.client().post("/api/v1/usage", &usage(address, "s", 1)).await;
    }
    let show = |key: &'static str| ["idempotency", "show", key, "--tenant"];
    let recorded = as_json(&service, &[&show("bulk")[..], &[tenant.as_str()]].concat()).await;
    assert_eq!(recorded["usage"].as_array().map(Vec::len), Some(2), "{recorded}");
    let settled = as_json(&service, &[&show("bill")[..], &[tenant.as_str()]].concat()).await;
    assert_eq!(settled["settlements"][0]["billedStroops"], 15, "{settled}");
    assert_eq!(settled["settlements"].as_array().map(Vec::len), Some(1));
    let before = settled["settlements"].clone();

    service.age_records(86_400_001).await;
    // Until the janitor comes.
    let table = printed(&service, &[&show("bulk")[..], &[tenant.as_str()]].concat()).await;
    assert!(table.contains("(expired)"), "{table}");
    service.janitor.run_once().await.expect("a run");
    let settled = as_json(&service, &[&show("bill")[..], &[tenant.as_str()]].concat()).await;
    assert_eq!(
        settled,
        json!({
            "key": "bill", "caller": format!("tenant:{tenant}"), "usage": [], "settlements": before
        })
    );
    let (code, stdout, stderr) = command(&service, &[&show("bulk")[..], &[tenant.as_str()]].concat()).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with(&format!("tenant:{tenant} has no record of this key: ")), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_key_it_is_has_to_be_said() {
    let service = Service::start(&[]).await;
    for arguments in [
        ["idempotency", "show", "k"].as_slice(),
        &["idempotency", "show", "k", "--tenant", "t", "--address", "127.0.0.1"],
        &["idempotency", "show", "--tenant", "t"],
        &["idempotency", "stats", "--limit", "0"],
    ] {
        let (code, stdout, _) = command(&service, arguments).await;
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_name_the_callers_with_the_most_records() {
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000")]).await;
    for (caller, records, age_ms) in [("ip:192.0.2.1", 3, 0), ("ip:192.0.2.2", 5, 90_000_000), ("ip:192.0.2.3", 1, 0)] {
        store_records(&service.pool, caller, records, age_ms, 10).await;
    }
    sqlx::query("INSERT INTO full_callers (caller) VALUES ('ip:192.0.2.1')")
        .execute(&service.pool)
        .await
        .expect("a row");
    let stats = as_json(&service, &["idempotency", "stats", "--limit", "2"]).await;
    assert_eq!((&stats["records"], &stats["expired"], &stats["fullCallers"]), (&json!(9), &json!(5), &json!(1)));
    let callers: Vec<_> = stats["callers"].as_array().expect("a list").iter().collect();
    assert_eq!((&callers[0]["caller"], &callers[0]["records"]), (&json!("ip:192.0.2.2"), &json!(5)));
    assert_eq!((&callers[1]["caller"], &callers[1]["isFull"]), (&json!("ip:192.0.2.1"), &json!(true)));
    assert_eq!(callers.len(), 2);
    let table = printed(&service, &["idempotency", "stats"]).await;
    assert!(table.starts_with("CALLER") && table.contains("5 expired, 1 callers full"), "{table}");
}
