//! HTTP contract, section 15.4 for usage, and the answers to what waits too long.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, Hold, Service, of_agent, usage, wait_until};

const USAGE: &str = "/api/v1/usage";

#[tokio::test]
async fn only_pairs_above_zero_take_capacity() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":2}"#)).await;
    let bulk = json!({ "items": [usage("a", "s", 1), usage("a", "s", 1), usage("b", "s", 1), usage("c", "s", 1),
                                 usage("a", "s", 1)] });
    assert_eq!(
        client.post("/api/v1/usage/bulk", &bulk).await.text,
        concat!(
            r#"{"results":[{"index":0,"ok":true,"total":1},{"index":1,"ok":true,"total":2},"#,
            r#"{"index":2,"ok":true,"total":1},{"index":3,"ok":false,"error":"store_capacity_exceeded"},"#,
            r#"{"index":4,"ok":true,"total":3}]}"#
        )
    );
    let full = client.key("k").post(USAGE, &usage("c", "s", 1)).await;
    let expected = (429, "store_capacity_exceeded".to_owned(), "usage store capacity exceeded".to_owned());
    assert_eq!((full.error(), full.header("retry-after").as_str()), (expected.clone(), ""));
    // Pairs above zero always pass; a disabled service is refused before the capacity is checked.
    assert_eq!(client.post(USAGE, &usage("b", "s", 1)).await.status, 201);
    client.post("/api/v1/services", &json!({ "serviceId": "off", "priceStroops": 1 })).await;
    client.send("POST", "/api/v1/services/off/disable", None).await;
    let disabled = client.post(USAGE, &usage("c", "off", 1)).await.error();
    assert_eq!(disabled, (409, "service_disabled".to_owned(), "service off is currently disabled".to_owned()));
    // Another tenant has its own capacity.
    let other = service.tenant().await;
    assert_eq!(other.post(USAGE, &usage("c", "s", 1)).await.status, 201);
    // Settling and resetting free capacity, and the same key now succeeds.
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    assert_eq!(client.key("k").post(USAGE, &usage("c", "s", 1)).await.status, 201);
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.error(), expected);
    client.send("DELETE", "/api/v1/usage/b/s", None).await;
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    // A lower cap removes nothing.
    client.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":1}"#)).await;
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.json()["total"], 2);
    assert_eq!(client.post(USAGE, &usage("b", "s", 1)).await.status, 429);
    service.verify().await;
}

#[tokio::test]
async fn the_bulk_limit_is_the_live_one() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let items = |count: usize| json!({ "items": vec![usage("a", "s", 1); count] });
    assert_eq!(client.post("/api/v1/usage/bulk", &items(100)).await.status, 201);
    assert_eq!(client.post("/api/v1/usage/bulk", &items(101)).await.status, 400);
    client.send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":2}"#)).await;
    assert_eq!(client.post("/api/v1/usage/bulk", &items(2)).await.status, 201);
    let refused = client.post("/api/v1/usage/bulk", &items(3)).await.error();
    assert_eq!(refused.2, "items must be a non-empty array of up to 2 entries");
    for body in [r#"{"items":{}}"#, r#"{"items":null}"#, "{}", r#"{"items":"x"}"#] {
        let refused = client.send("POST", "/api/v1/usage/bulk", Some(body)).await.error();
        assert_eq!(refused.2, "items must be a non-empty array of up to 2 entries", "{body}");
    }
}

/// The transaction stands for another replica that holds the key.
#[tokio::test]
async fn a_key_that_another_replica_holds_until_the_deadline_is_409() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "10000")]).await;
    let client = service.client();
    let mut other = service.pool.acquire().await.expect("connection");
    let mut transaction = other.begin().await.expect("begin");
    let record = "INSERT INTO idempotency_keys (caller, key, method, path, request_hash, status, response, request_id,
                      attempt_id, created_at, expires_at)
                  VALUES ('ip:127.0.0.1', 'k', 'POST', '/api/v1/usage', sha256('x'), 201, '{}', 'r', 1, now(), now() + '1 h')";
    sqlx::query(record).execute(&mut *transaction).await.expect("a record");
    let answer = client.key("k").post(USAGE, &usage("a", "s", 1)).await;
    let message = "a request with this Idempotency-Key is still being processed";
    assert_eq!(answer.error(), (409, "idempotency_in_flight".to_owned(), message.to_owned()));
    assert_eq!(answer.header("retry-after"), "1");
    transaction.rollback().await.expect("rollback");
    let again = client.key("k").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((again.status, again.replayed, again.json()["total"].as_i64()), (201, false, Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_what_it_cannot_take() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("COMMIT_QUEUE_MAX", "2")]).await;
    let client = service.client();
    // The lane takes the first one and is held up; the others wait for the lane.
    let hold = Hold::begin(&service.pool, &of_agent("a")).await;
    let send = || {
        let client = client.clone();
        tokio::spawn(async move { client.post(USAGE, &usage("a", "s", 1)).await })
    };
    let mut waiting = vec![send()];
    hold.has_one().await;
    waiting.extend([send(), send()]);
    service.queued(2).await;
    let refused = client.post(USAGE, &usage("b", "s", 1)).await;
    let message = "the write queue is full; nothing was changed";
    assert_eq!(refused.error(), (503, "service_unavailable".to_owned(), message.to_owned()));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(client.get("/api/v1/health/deep").await.json()["checks"][2]["status"], "error");
    hold.release().await;
    for answer in waiting {
        assert_eq!(answer.await.expect("a task").status, 201);
    }
    assert_eq!(client.post(USAGE, &usage("b", "s", 1)).await.status, 201);
    assert_eq!(client.get("/api/v1/usage/a/s").await.json()["total"], 3);
}

/// Two requests share a batch that is held up past the deadline of the first: that one is told that nothing was
/// changed, so nothing of it may be written with the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_at_its_deadline_is_not_written_with_its_batch() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "3000")]).await;
    service.client().post(USAGE, &usage("other", "s", 1)).await;
    // A busy machine may be too slow to let the two meet before the deadline. What is given up is not written then either.
    for round in 0..10 {
        if is_held_up_past_its_deadline(&service, &format!("first-{round}")).await {
            break;
        }
    }
    assert_eq!(service.number("SELECT count(*) FROM usage_counters WHERE agent_id LIKE 'first-%'").await, 0);
    service.verify().await;
}

/// False if the two requests did not wait together before the deadline of the first.
async fn is_held_up_past_its_deadline(service: &Service, agent: &str) -> bool {
    let client = service.client();
    // The deadline counts from the head: this one's comes long before that of those that follow.
    let mut first = TcpStream::connect(service.address).await.expect("connect");
    let body = usage(agent, "s", 1).to_string();
    let head = format!(
        "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    first.write_all(head.as_bytes()).await.expect("write");
    let began = Instant::now();
    wait_until(async || began.elapsed() > Duration::from_millis(2600)).await;

    // The lane is busy with a change that waits for a row, while two requests gather behind it.
    let mut row = service.pool.begin().await.expect("begin");
    sqlx::query("SELECT FROM runtime_config FOR UPDATE").execute(&mut *row).await.expect("a lock");
    let config = client.clone();
    let change = async move { config.send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":7}"#)).await };
    let change = tokio::spawn(change);
    service.blocked(1).await;
    // Their batch reads this table, and the change does not: it cannot go on until the first has given up.
    let mut table = service.pool.begin().await.expect("begin");
    sqlx::query("LOCK TABLE agents").execute(&mut *table).await.expect("a lock");
    // The answer to a request whose deadline has passed may come before all of its body is sent.
    let _ = first.write_all(body.as_bytes()).await;
    let second = client.clone();
    let second = tokio::spawn(async move { second.post(USAGE, &usage("second", "s", 1)).await });
    let are_queued = async || client.get("/api/v1/health/deep").await.json()["checks"][2]["detail"]["depth"] == 2;
    let mut have_met = false;
    wait_until(async || {
        have_met = are_queued().await;
        have_met || began.elapsed() > Duration::from_millis(3000)
    })
    .await;
    row.rollback().await.expect("rollback");
    let change = change.await.expect("a task");

    let mut answer = String::new();
    let answered = first.read_to_string(&mut answer).await;
    table.rollback().await.expect("rollback");
    let second = second.await.expect("a task");
    if have_met {
        assert_eq!((change.status, second.status), (200, 201), "{change:?} {second:?}");
        answered.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("nothing was changed"), "{answer}");
    }
    have_met
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_floods_the_queue_gives_way_to_others() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("COMMIT_QUEUE_MAX", "4")]).await;
    let client = service.client();
    let other = service.tenant().await;
    // The lane is busy, and the queue full of one tenant.
    let hold = Hold::begin(&service.pool, &of_agent("busy")).await;
    let send = |client: &Client, agent: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.post(USAGE, &usage(agent, "s", 1)).await })
    };
    let busy = send(&client, "busy");
    hold.has_one().await;
    let flood: Vec<_> = (0..4).map(|_| send(&client, "flood")).collect();
    service.queued(4).await;
    // Another one gets its share of it, at the cost of those that came last.
    let others = [send(&other, "a"), send(&other, "a")];
    wait_until(async || flood.iter().filter(|request| request.is_finished()).count() == 2).await;
    hold.release().await;
    for request in others.into_iter().chain([busy]) {
        let answer = request.await.expect("a client");
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let mut statuses = Vec::new();
    for request in flood {
        statuses.push(request.await.expect("a client").status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 201, 503, 503]);
    let lifetime = "SELECT sum(outstanding + settled + reset)::bigint FROM usage_counters";
    assert_eq!(service.number(lifetime).await, 5);
    service.verify().await;
}
