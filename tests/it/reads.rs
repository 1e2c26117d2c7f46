//! Reads that many ask at the same time: each gets its own answer, and none that is older than its question.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::{Client, Service, usage};

const CLIENTS: i64 = 24;

/// A tenant of its own, told apart by its price and by what it used.
async fn tenant(service: &Service, number: i64) -> Client {
    let key = service.client().post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let client = service.client().with("x-api-key", key["key"].as_str().expect("a key"));
    let body = json!({ "serviceId": "s", "priceStroops": number });
    assert_eq!(client.post("/api/v1/services", &body).await.status, 201);
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", number)).await.status, 201);
    client
}

/// What one client sees of its tenant in five reads.
async fn view(client: &Client) -> [Value; 5] {
    let mut view = [const { Value::Null }; 5];
    for (place, path) in ["usage/a/s", "billing/a/s", "billing/total", "stats", "events"].into_iter().enumerate() {
        let answer = client.get(&format!("/api/v1/{path}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        view[place] = answer.json();
    }
    view
}

#[tokio::test]
async fn everybody_gets_the_own_answer_from_a_read_for_all() {
    let service = Service::start(&[]).await;
    let mut clients = Vec::new();
    for number in 1..=CLIENTS {
        clients.push((number, tenant(&service, number).await));
    }
    let tasks = clients.into_iter().flat_map(|(number, client)| {
        [client.clone(), client].map(|client| {
            tokio::spawn(async move {
                for _ in 0..5 {
                    let [usage, quote, total, stats, events] = view(&client).await;
                    assert_eq!(usage, json!({ "agent": "a", "serviceId": "s", "total": number }));
                    assert_eq!((&quote["requests"], &quote["priceStroops"]), (&json!(number), &json!(number)));
                    assert_eq!(total["totalStroops"], json!(number * number));
                    assert_eq!(stats["totalRequests"], json!(number));
                    assert_eq!(stats["servicesBreakdown"].as_array().map(Vec::len), Some(1));
                    assert_eq!(stats["servicesBreakdown"][0]["requestsOutstanding"], json!(number));
                    assert_eq!(
                        (&events["total"], &events["items"][0]["payload"]["total"]),
                        (&json!(1), &json!(number))
                    );
                }
            })
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
}

#[tokio::test]
async fn whoever_recorded_sees_it_in_the_next_read() {
    let service = Service::start(&[]).await;
    let made = service.client().post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    assert_eq!(made.status, 201);
    let tasks = (0..CLIENTS).map(|number| {
        let client = service.client();
        tokio::spawn(async move {
            let agent = format!("agent-{number}");
            for count in 1..=10 {
                assert_eq!(client.post("/api/v1/usage", &usage(&agent, "s", 1)).await.status, 201);
                let read = client.get(&format!("/api/v1/usage/{agent}/s")).await.json();
                assert_eq!(read["total"], json!(count));
                // Others record too, so these only grow.
                let least = json!(count);
                let total = client.get("/api/v1/billing/total").await.json();
                assert!(total["totalStroops"].as_i64() >= least.as_i64(), "{total}");
                let events = client.get("/api/v1/events?limit=100").await.json();
                let own = |event: &&Value| event["payload"]["agent"] == json!(agent);
                let newest = events["items"].as_array().expect("items").iter().rev().find(own).cloned();
                // At most a hundred of others can have come since.
                assert!(newest.is_none_or(|event| event["payload"]["total"] == least));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
    service.verify().await;
}

/// Somebody keeps a table: all who ask are refused in time, and nobody waits for a connection that hangs.
#[tokio::test]
async fn a_read_that_hangs_is_refused_to_all_and_leaves_no_connection_behind() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "1000"), ("DATABASE_POOL_MAX", "2")]).await;
    let client = tenant(&service, 3).await;
    let mut keeper = service.pool.acquire().await.expect("a connection").detach();
    let mut kept = keeper.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE usage_counters IN ACCESS EXCLUSIVE MODE").execute(&mut *kept).await.expect("a lock");
    let tasks = (0..CLIENTS).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.get("/api/v1/usage/a/s").await.status })
    });
    let mut statuses: BTreeMap<u16, i64> = BTreeMap::new();
    for task in tasks.collect::<Vec<_>>() {
        *statuses.entry(task.await.expect("a client")).or_default() += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(503, CLIENTS)]));
    // Reads of other tables go on meanwhile.
    assert_eq!(client.get("/api/v1/stats").await.status, 200);
    kept.rollback().await.expect("rolled back");
    let mut answer = client.get("/api/v1/usage/a/s").await;
    while answer.status == 503 {
        answer = client.get("/api/v1/usage/a/s").await;
    }
    assert_eq!(answer.json()["total"], json!(3), "{answer:?}");
}
