//! What a batch wrote on older knowledge is taken back as a whole.

use agentpay_billing::domain::caller::Tenant;
use agentpay_billing::domain::names::{AgentId, ServiceId};
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::domain::usage::Pair;
use agentpay_billing::store::batch::{self, ChangedCounter, Changes};
use agentpay_billing::store::totals::TenantChange;
use agentpay_billing::store::usage::{Counter, CounterId};
use agentpay_billing::store::{FaultKind, StoreError};
use serde_json::json;

use crate::support::{Service, new_database, usage};

/// Writes one counter of the pair a/s, and a total beside it.
async fn write(service: &Service, counter: Counter, arrival: Option<i64>) -> Result<(), StoreError> {
    let pair = Pair { agent: AgentId::parse("a").expect("id"), service_id: ServiceId::parse("s").expect("id") };
    let id = CounterId { tenant: Tenant::public(), pair };
    let change = TenantChange { lifetime: 1, ..TenantChange::default() };
    let changes = Changes {
        counters: vec![ChangedCounter { id: &id, counter, arrival }],
        tenants: [(Tenant::public(), change)].into(),
        ..Changes::default()
    };
    let mut connection = service.pool.acquire().await.expect("connection");
    batch::write(&mut connection, &changes, 3, Timestamp::from_ms(0), "500ms").await
}

#[tokio::test]
async fn a_counter_that_moved_vanished_or_came_meanwhile_takes_everything_back() {
    let service = Service::start(&[]).await;
    let counter = |outstanding, version| Counter { outstanding, settled: 0, reset: 0, version };
    let kind = |result: Result<(), StoreError>| result.expect_err("taken back").kind();
    // It was read as known, and is gone; then as known to its agent, which is gone.
    assert_eq!(kind(write(&service, counter(6, 2), None).await), FaultKind::Moved);
    assert_eq!(kind(write(&service, counter(6, 1), Some(1)).await), FaultKind::Moved);
    // The same, while its agent is there by another pair.
    service.client().post("/api/v1/usage", &usage("a", "other", 1)).await;
    assert_eq!(kind(write(&service, counter(6, 2), None).await), FaultKind::Moved);
    service.client().post("/api/v1/usage", &usage("a", "s", 5)).await;
    let version = "SELECT version FROM usage_counters WHERE service_id = 's'";
    let first = service.number(version).await;
    // It was read as new, and is there; then at its first version, and is at the next.
    assert_eq!(kind(write(&service, counter(6, 1), Some(1)).await), FaultKind::Moved);
    service.client().post("/api/v1/usage", &usage("a", "s", 1)).await;
    assert_eq!(service.number(version).await, first + 1);
    assert_eq!(kind(write(&service, counter(6, first + 1), None).await), FaultKind::Moved);
    service.verify().await;
    // At the version before its new one it is written.
    write(&service, counter(7, first + 2), None).await.expect("written");
    assert_eq!(service.number("SELECT outstanding FROM usage_counters WHERE service_id = 's'").await, 7);
    let lifetime = "SELECT sum(lifetime)::bigint FROM tenant_totals WHERE tenant = 'public'";
    assert_eq!(service.number(lifetime).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_of_an_agent_holds_all_or_nothing_of_a_bulk_record_that_commits_with_it() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    for agent in ["a", "busy"] {
        client.post("/api/v1/usage", &usage(agent, "old", 1)).await;
    }
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "old" })).await;
    // The lane waits for this row, and what comes meanwhile forms one batch.
    let mut holder = service.pool.begin().await.expect("transaction");
    let lock = "SELECT 1 FROM usage_counters WHERE agent = 'busy' FOR UPDATE";
    sqlx::query(lock).execute(&mut *holder).await.expect("lock");
    let post = |path: &'static str, body: serde_json::Value| {
        let client = service.client();
        tokio::spawn(async move { client.post(path, &body).await })
    };
    let queued = async |depth: i64| {
        let line = format!("agentpay_commit_queue_depth {depth}");
        while !client.get("/api/v1/metrics").await.text.contains(&line) {}
    };
    let busy = post("/api/v1/usage", usage("busy", "old", 1));
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while service.number(waiting).await == 0 {}
    let bulk = post("/api/v1/usage/bulk", json!({ "items": [usage("a", "old", 2), usage("a", "new", 3)] }));
    queued(1).await;
    let bill = post("/api/v1/settle/bulk", json!({ "agent": "a" }));
    queued(2).await;
    holder.rollback().await.expect("rollback");
    assert_eq!((busy.await.expect("a client").status, bulk.await.expect("a client").status), (201, 201));
    let due: Vec<i64> = bill.await.expect("a client").json()["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["requests"].as_i64().expect("a number"))
        .collect();
    assert_eq!(due, [2, 3]);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_one_hot_pair_count_every_request_once() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    let clients = (0..16_usize).map(|number| {
        let client = services[number % 2].client();
        tokio::spawn(async move {
            for round in 0..25 {
                let (path, body) = match (number + round) % 5 {
                    0 => ("/api/v1/settle", json!({ "agent": "hot", "serviceId": "s" })),
                    1 => ("/api/v1/usage/bulk", json!({ "items": [usage("cold", "s", 1), usage("hot", "s", 2)] })),
                    _ => ("/api/v1/usage", usage("hot", "s", 3)),
                };
                let answer = client.key(&format!("{number}-{round}")).post(path, &body).await;
                assert!(matches!(answer.status, 200 | 201), "{answer:?}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client");
    }
    // 400 requests: a fifth each settles and is bulk, the rest adds 3.
    assert_eq!(services[0].number("SELECT lifetime FROM usage_counters WHERE agent = 'hot'").await, 80 * 2 + 240 * 3);
    assert_eq!(services[0].number("SELECT lifetime FROM usage_counters WHERE agent = 'cold'").await, 80);
    services[0].verify().await;
}
