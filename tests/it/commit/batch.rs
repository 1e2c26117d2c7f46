//! What a batch wrote on stale knowledge is taken back as a whole, with an SQLSTATE that says why.

use agentpay_billing::domain::caller::Tenant;
use agentpay_billing::domain::cell::Dialect;
use agentpay_billing::domain::names::{AgentId, ServiceId};
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::domain::usage::Pair;
use agentpay_billing::store::commit::{self, Changes, CounterChange, NewIdempotencyKey, NewPair, TotalsChange};
use agentpay_billing::store::positions::CommitNumbers;
use agentpay_billing::store::usage::CounterId;
use agentpay_billing::store::{Conflict, FaultKind, StoreError};
use serde_json::json;
use sqlx::Executor;

use crate::support::{Moment, Proxy, Service, new_database, usage};

/// Changes that add one to a total beside what a test wants to write.
fn changes<'a>() -> Changes<'a> {
    let total = TotalsChange {
        tenant_id: "public",
        service_id: "",
        pairs_above_zero: 0,
        outstanding: 0,
        recorded: 1,
        events: 0,
    };
    Changes {
        attempt_id: 42,
        now: Timestamp::from_ms(0),
        expires_at: Timestamp::from_ms(1),
        shard: 3,
        counters: Vec::new(),
        new_pairs: Vec::new(),
        numbers: CommitNumbers::default(),
        totals: vec![total],
        rare_totals: Vec::new(),
        callers: Vec::new(),
        settlements: &[],
        event_runs: Vec::new(),
        outbox: Vec::new(),
        keys: Vec::new(),
        expired: Vec::new(),
        terms: Vec::new(),
    }
}

/// Writes in a transaction that is rolled back after an error. Returns the SQLSTATE, where PostgreSQL raised it.
async fn write(service: &Service, changes: &Changes<'_>) -> Result<(), (FaultKind, Option<String>)> {
    let mut transaction = service.pool.begin().await.expect("a transaction");
    match commit::write(&mut transaction, Dialect::PostgreSql, changes).await {
        Ok(()) => {
            transaction.commit().await.expect("COMMIT");
            Ok(())
        }
        Err(error) => {
            let code = match &error {
                StoreError::Database(sqlx::Error::Database(error)) => error.code().map(Into::into),
                _ => None,
            };
            Err((error.kind(), code))
        }
    }
}

fn lost(conflict: Conflict, code: &str) -> Result<(), (FaultKind, Option<String>)> {
    Err((FaultKind::Conflict(conflict), Some(code.to_owned())))
}

#[tokio::test]
async fn a_counter_that_moved_or_vanished_takes_everything_back() {
    let service = Service::start(&[]).await;
    service.client().post("/api/v1/usage", &usage("a", "s", 5)).await;
    let version = "SELECT version FROM usage_counters";
    let pair_id = service.number("SELECT pair_id FROM usage_counters").await;
    let at = |pair_id, version| Changes {
        counters: vec![CounterChange { pair_id, version, outstanding: 6, settled: 0, reset: 0 }],
        ..changes()
    };
    let first = service.number(version).await;
    assert_eq!(write(&service, &at(pair_id, first + 1)).await, lost(Conflict::Version, "OC001"));
    assert_eq!(write(&service, &at(pair_id + 1, first)).await, lost(Conflict::Version, "OC001"));
    service.client().post("/api/v1/usage", &usage("a", "s", 1)).await;
    assert_ne!(service.number(version).await, first);
    assert_eq!(write(&service, &at(pair_id, first)).await, lost(Conflict::Version, "OC001"));
    service.verify().await;
    let current = service.number(version).await;
    write(&service, &at(pair_id, current)).await.expect("written");
    assert_eq!(service.number(version).await, 42);
    assert_eq!(service.number("SELECT sum(recorded)::bigint FROM totals WHERE service_id = ''").await, 7);
}

#[tokio::test]
async fn a_pair_or_an_agent_that_came_meanwhile_takes_everything_back() {
    let service = Service::start(&[]).await;
    service.client().post("/api/v1/usage", &usage("a", "s", 5)).await;
    let id = |agent: &str, service: &str| {
        let pair =
            Pair { agent: AgentId::parse(agent).expect("id"), service_id: ServiceId::parse(service).expect("id") };
        CounterId { tenant: Tenant::public(), pair }
    };
    for (id, agent_arrival) in [(id("a", "s"), None), (id("a", "t"), Some(1))] {
        let pair = NewPair { id: &id, outstanding: 1, settled: 0, reset: 0, arrival: 1, agent_arrival };
        let result = write(&service, &Changes { new_pairs: vec![pair], ..changes() }).await;
        assert_eq!(result, Err((FaultKind::Conflict(Conflict::Version), None)), "{id:?}");
    }
    // The agent that was known is gone.
    let gone = id("b", "s");
    let pair = NewPair { id: &gone, outstanding: 1, settled: 0, reset: 0, arrival: 1, agent_arrival: None };
    let result = write(&service, &Changes { new_pairs: vec![pair], ..changes() }).await;
    assert_eq!(result, lost(Conflict::Version, "23503"));
    service.verify().await;
}

#[tokio::test]
async fn a_key_that_was_stored_meanwhile_takes_everything_back() {
    let service = Service::start(&[]).await;
    service.client().key("k").post("/api/v1/usage", &usage("a", "s", 5)).await;
    let key = NewIdempotencyKey {
        caller: "ip:127.0.0.1",
        key: "k",
        method: "POST",
        path: "/",
        request_hash: &[0; 32],
        status: 201,
        response: Some("{}"),
        request_id: "r",
    };
    let result = write(&service, &Changes { keys: vec![key], ..changes() }).await;
    assert_eq!(result, lost(Conflict::Key, "OC002"));
    service.verify().await;
}

#[tokio::test]
async fn terms_that_changed_meanwhile_take_everything_back() {
    let service = Service::start(&[]).await;
    let tenant = Tenant::public();
    let revision = "SELECT terms_revision FROM tenants WHERE tenant_id = 'public'";
    let decided_on = |revision| Changes { terms: vec![(&tenant, revision)], ..changes() };
    let first = service.number(revision).await;
    let offer = json!({ "serviceId": "s", "priceStroops": 2 });
    assert_eq!(service.client().post("/api/v1/services", &offer).await.status, 201);
    assert_ne!(service.number(revision).await, first);
    assert_eq!(write(&service, &decided_on(first)).await, lost(Conflict::Terms, "OC003"));
    service.verify().await;
    service.pool.execute("UPDATE tenants SET terms_revision = 5").await.expect("a revision");
    write(&service, &decided_on(5)).await.expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_of_an_agent_holds_all_or_nothing_of_a_bulk_record_that_commits_with_it() {
    let proxy = Proxy::start(&new_database().await).await;
    let service = Service::start_on(proxy.options(), &[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "60000")]).await;
    let client = service.client();
    for agent in ["a", "busy"] {
        client.post("/api/v1/usage", &usage(agent, "old", 1)).await;
    }
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "old" })).await;
    let post = |path: &'static str, body: serde_json::Value| {
        let client = service.client();
        tokio::spawn(async move { client.post(path, &body).await })
    };
    // While the lane's commit is held up, what comes meanwhile forms one batch.
    proxy.at_next_commit(Moment::Held);
    let busy = post("/api/v1/usage", usage("busy", "old", 1));
    proxy.happened().await;
    let bulk = post("/api/v1/usage/bulk", json!({ "items": [usage("a", "old", 2), usage("a", "new", 3)] }));
    service.queued(1).await;
    let bill = post("/api/v1/settle/bulk", json!({ "agent": "a" }));
    service.queued(2).await;
    proxy.release();
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
    assert_eq!(
        services[0].number("SELECT outstanding + settled + reset FROM usage_counters WHERE agent_id = 'hot'").await,
        80 * 2 + 240 * 3
    );
    assert_eq!(
        services[0].number("SELECT outstanding + settled + reset FROM usage_counters WHERE agent_id = 'cold'").await,
        80
    );
    services[0].verify().await;
}
