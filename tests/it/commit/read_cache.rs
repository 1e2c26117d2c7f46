//! The cache of a lane is never trusted: a change by another process is noticed with the next write.

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

use crate::support::{Client, Moment, Proxy, Service, new_database, usage, wait_until};

const SETTLE: &str = "/api/v1/settle";
const USAGE: &str = "/api/v1/usage";
const PAIR: &str = "/api/v1/usage/a/s";
const ADMIN: &[(&str, &str)] = &[("ALLOW_ADMIN_RESET", "on"), ("ADMIN_API_KEY", "admin"), ("RATE_LIMIT", "off")];

/// Two services on one database. The first one uses its cache of the pair a/s, its service and its tenant.
async fn remembering() -> [Service; 2] {
    let database = new_database().await;
    remembering_on(database.clone(), database).await
}

async fn remembering_on(first: PgConnectOptions, second: PgConnectOptions) -> [Service; 2] {
    let services = [Service::start_on(first, ADMIN).await, Service::start_on(second, ADMIN).await];
    let client = services[0].client();
    register(&client, 5).await;
    // A lane reads everything until it has seen that no other process writes.
    for _ in 0..70 {
        assert_eq!(client.post(USAGE, &usage("warm", "s", 1)).await.status, 201);
    }
    for key in ["first", "second"] {
        assert_eq!(client.key(key).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    services
}

fn pair() -> Value {
    json!({ "agent": "a", "serviceId": "s" })
}

async fn register(client: &Client, price_stroops: i64) {
    let service = json!({ "serviceId": "s", "priceStroops": price_stroops });
    let answer = client.post("/api/v1/services", &service).await;
    assert!([200, 201].contains(&answer.status), "{answer:?}");
}

async fn total(client: &Client, requests: i64) -> Value {
    let answer = client.post(USAGE, &usage("a", "s", requests)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["total"].clone()
}

#[tokio::test]
async fn a_counter_that_another_process_wrote_is_read_again() {
    let [first, second] = remembering().await;
    for round in 1..=3 {
        assert_eq!(total(&second.client(), 10).await, 11 * round - 11 + 2 + 10);
        assert_eq!(total(&first.client(), 1).await, 11 * round + 2);
    }
    second.client().post(SETTLE, &pair()).await;
    assert_eq!(total(&first.client(), 1).await, 1);
    first.verify().await;
}

#[tokio::test]
async fn a_key_that_another_process_stored_replays_and_conflicts() {
    let [first, second] = remembering().await;
    let (here, there) = (first.client(), second.client());
    let made = there.key("theirs").post(USAGE, &usage("a", "s", 1)).await;
    // Sent to a lane that uses its cache: it has never seen the key, and has the rest.
    total(&here, 1).await;
    let replayed = here.key("theirs").post(USAGE, &usage("a", "s", 1)).await;
    assert!(replayed.replayed && replayed.same(&made), "{replayed:?}");
    assert_eq!(here.key("theirs").post(USAGE, &usage("a", "s", 2)).await.status, 409);
    assert_eq!(there.key("first").post(USAGE, &usage("a", "s", 1)).await.json()["total"], 1);
    assert_eq!(first.number("SELECT outstanding FROM usage_counters WHERE agent_id = 'a'").await, 4);
    first.verify().await;
}

#[tokio::test]
async fn a_service_that_another_process_disabled_takes_no_more_usage() {
    let [first, second] = remembering().await;
    assert_eq!(second.client().post("/api/v1/services/s/disable", &json!({})).await.status, 200);
    let refused = first.client().post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(refused.error().1, "service_disabled", "{refused:?}");
    assert_eq!(second.client().post("/api/v1/services/s/enable", &json!({})).await.status, 200);
    assert_eq!(total(&first.client(), 1).await, 3);
}

#[tokio::test]
async fn a_price_that_another_process_changed_is_what_is_billed() {
    let [first, second] = remembering().await;
    register(&second.client(), 7).await;
    let bill = first.client().post(SETTLE, &pair()).await.json();
    assert_eq!(bill["billedStroops"], 14, "{bill}");
    // A service that is gone has no price at all.
    total(&first.client(), 1).await;
    assert_eq!(second.client().send("DELETE", "/api/v1/services/s", None).await.status, 204);
    let unpriced = first.client().post(SETTLE, &pair()).await.json();
    assert_eq!(unpriced["billedStroops"], 0, "{unpriced}");
}

#[tokio::test]
async fn a_webhook_that_another_process_made_is_told_of_the_next_record() {
    let [first, second] = remembering().await;
    let webhook = json!({ "url": "https://example.com/hook", "events": ["*"] });
    assert_eq!(second.client().post("/api/v1/webhooks", &webhook).await.status, 201);
    let _turns = (first.dispatcher.turn.lock().await, second.dispatcher.turn.lock().await);
    total(&first.client(), 1).await;
    assert_eq!(first.number("SELECT count(*) FROM outbox").await, 1);
}

#[tokio::test]
async fn a_pair_that_fell_to_zero_takes_capacity_again() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":1}"#)).await;
    register(&client, 5).await;
    assert_eq!(total(&client, 1).await, 1);
    client.post(SETTLE, &pair()).await;
    assert_eq!(client.post(USAGE, &usage("b", "s", 1)).await.status, 201);
    let full = client.post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(full.error().1, "store_capacity_exceeded", "{full:?}");
}

#[tokio::test]
async fn a_pair_at_zero_that_another_process_raised_is_settled_and_cleared_in_full() {
    let [first, second] = remembering().await;
    let (here, there) = (first.client(), second.client());
    assert_eq!(here.post(SETTLE, &pair()).await.json()["requests"], 2);
    assert_eq!(total(&there, 10).await, 10);
    assert_eq!(here.post(SETTLE, &pair()).await.json()["requests"], 10);
    assert_eq!(total(&there, 3).await, 3);
    assert_eq!(here.send("DELETE", PAIR, None).await.json()["clearedTotal"], 3);
    first.verify().await;
}

#[tokio::test]
async fn a_pair_at_zero_that_another_process_raised_needs_no_capacity() {
    let [first, second] = remembering().await;
    let (here, there) = (first.client(), second.client());
    here.post(SETTLE, &pair()).await;
    assert_eq!(total(&there, 10).await, 10);
    let admin = here.with("x-api-key", "admin");
    assert_eq!(admin.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":1}"#)).await.status, 200);
    assert_eq!(total(&here, 1).await, 11);
}

#[tokio::test]
async fn a_stored_answer_is_replayed_even_where_the_request_would_now_be_refused() {
    let [first, second] = remembering().await;
    let (here, there) = (first.client(), second.client());
    let made = there.key("theirs").post(USAGE, &usage("gone", "s", 1)).await;
    there.post(SETTLE, &json!({ "agent": "gone", "serviceId": "s" })).await;
    let admin = here.with("x-api-key", "admin");
    assert_eq!(admin.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":1}"#)).await.status, 200);
    // The tenant is full now. Without its key the request is refused, with it answered.
    assert_eq!(here.post(USAGE, &usage("gone", "s", 1)).await.status, 429);
    let replayed = here.key("theirs").post(USAGE, &usage("gone", "s", 1)).await;
    assert!(replayed.replayed && replayed.same(&made), "{replayed:?}");
    assert_eq!(here.key("theirs").post(USAGE, &usage("gone", "s", 2)).await.status, 409);
}

#[tokio::test]
async fn nothing_of_before_a_reset_by_another_process_comes_back() {
    let [first, second] = remembering().await;
    let there = second.client();
    assert_eq!(there.with("x-api-key", "admin").send("POST", "/api/v1/admin/reset", None).await.status, 200);
    // All that is cached is there again, and the pair was written as often as before.
    register(&there, 5).await;
    assert_eq!(total(&there, 10).await, 10);
    assert_eq!(total(&there, 10).await, 20);
    assert_eq!(total(&first.client(), 1).await, 21);
    first.verify().await;
}

#[tokio::test]
async fn a_reset_here_is_not_forgotten() {
    let [first, _] = remembering().await;
    let client = first.client();
    assert_eq!(client.with("x-api-key", "admin").send("POST", "/api/v1/admin/reset", None).await.status, 200);
    assert_eq!(client.send("DELETE", PAIR, None).await.status, 404);
    assert_eq!(total(&client, 1).await, 1);
    first.verify().await;
}

#[tokio::test]
async fn a_connection_that_was_lost_while_idle_leaves_no_write_in_doubt() {
    let [first, _] = remembering().await;
    let lanes = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                 AND query LIKE '-- commit::%'";
    let idle = format!("SELECT count(*) {lanes} AND state_change < clock_timestamp() - interval '1.1 s'");
    let idle: &'static str = idle.leak();
    wait_until(async || first.number(idle).await > 0).await;
    let kill = format!("SELECT count(pg_terminate_backend(pid)) {lanes}");
    assert!(first.number(kill.leak()).await > 0);
    assert_eq!(total(&first.client(), 1).await, 3);
    first.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_did_not_land_leaves_nothing_in_the_cache() {
    let database = new_database().await;
    let proxy = Proxy::start(&database).await;
    let [first, second] = remembering_on(proxy.options(), database).await;
    for (moment, key, expected) in [(Moment::BeforeCommit, "k", 107), (Moment::AfterCommit, "l", 112)] {
        proxy.at_next_commit_and_close(moment);
        let client = first.client().key(key);
        let waiting = tokio::spawn(async move { client.post(USAGE, &usage("a", "s", 5)).await });
        proxy.happened().await;
        total(&second.client(), 100).await;
        proxy.open();
        let answer = waiting.await.expect("a client");
        assert_eq!((answer.status, &answer.json()["total"]), (201, &json!(expected)), "{moment:?}");
    }
    assert_eq!(total(&first.client(), 1).await, 213);
    first.verify().await;
}
