//! `settlements export`.

use serde_json::{Value, json};

use crate::support::{Service, usage};

use super::{as_json, command, printed, tenant};

async fn settle(service: &Service, key: &str, agent: &str, idempotency_key: &str) {
    let client = service.client().with("x-api-key", key);
    client.post("/api/v1/usage", &usage(agent, "s", 2)).await;
    let pair = json!({ "agent": agent, "serviceId": "s" });
    client.key(idempotency_key).post("/api/v1/settle", &pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_of_one_or_all_tenants_is_exported() {
    let service = Service::start(&[]).await;
    let (one, one_key) = tenant(&service, "one").await;
    let (two, two_key) = tenant(&service, "two").await;
    settle(&service, &one_key, "a", "=1+1,\"x\"").await;
    service.clock.advance_ms(10);
    settle(&service, &one_key, "b", "k").await;
    settle(&service, &two_key, "c", "k").await;

    let all = as_json(&service, &["settlements", "export"]).await;
    let listed = service.client().with("x-api-key", &one_key).get("/api/v1/settlements").await.json();
    let own: Vec<Value> =
        all.as_array().expect("a list").iter().filter(|item| item["tenantId"] == one.as_str()).cloned().collect();
    let without_tenant = |mut item: Value| {
        item.as_object_mut().expect("an object").remove("tenantId");
        item
    };
    assert_eq!(json!(own.into_iter().map(without_tenant).collect::<Vec<_>>()), listed["items"]);
    assert_eq!(all.as_array().map(Vec::len), Some(3));

    let csv = printed(&service, &["settlements", "export", "--tenant", &one]).await;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(
        lines[0],
        "tenantId,id,agent,serviceId,requests,priceStroops,billedStroops,settledAt,idempotencyKey,requestId"
    );
    assert!(lines[1].starts_with(&format!("{one},stl_")) && lines[1].contains(",b,s,2,0,0,20"), "{csv}");
    assert!(lines[2].contains(",\"'=1+1,\"\"x\"\"\","), "{csv}");
    assert_eq!(lines.len(), 3);

    let since = listed["items"][0]["settledAt"].as_i64().expect("ms");
    let moment = agentpay_billing::domain::timestamp::Timestamp::from_ms(since).to_rfc_3339();
    let agents = async |arguments: &[&str]| {
        let exported = as_json(&service, &[&["settlements", "export", "--tenant", &one], arguments].concat()).await;
        let agents =
            exported.as_array().expect("a list").iter().map(|item| item["agent"].as_str().expect("a name").to_owned());
        agents.collect::<Vec<_>>()
    };
    assert_eq!(agents(&["--since", &moment]).await, ["b"]);
    assert_eq!(agents(&["--until", &moment]).await, ["a"]);
    assert_eq!(agents(&["--since", "1h"]).await, ["b", "a"]);
    assert_eq!(agents(&["--until", "2026-01-01"]).await, [""; 0]);
    let (code, _, stderr) = command(&service, &["settlements", "export", "--since", "yesterday"]).await;
    assert!(code == 2 && stderr.contains("7d"), "{stderr}");
    let none =
        printed(&service, &["settlements", "export", "--tenant", &two, "--until", "1970-01-02", "--format", "json"])
            .await;
    assert_eq!(none, "[\n]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_many_pages_has_each_settlement_once() {
    let service = Service::start(&[]).await;
    let rows = "WITH agent AS (INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a')),
        pair AS (INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, settled, version)
                 VALUES ('public', 'a', 's', 0, 2500, 1))
        INSERT INTO settlements (tenant_id, settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops,
                                 settled_at, request_id)
        SELECT 'public', 'stl_' || md5(n::text), 'a', 's', 1, 0, 0, now() - n / 100 * interval '1 ms', 'r'
        FROM generate_series(1, 2500) AS n";
    sqlx::raw_sql(rows).execute(&service.pool).await.expect("settlements");
    let exported = as_json(&service, &["settlements", "export"]).await;
    let mut ids: Vec<&str> =
        exported.as_array().expect("a list").iter().map(|item| item["id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), 2500);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2500);
}
