//! What a lane remembers is never trusted: whatever another process changed since is noticed with the next write.

use serde_json::{Value, json};

use crate::support::{Client, Service, new_database, usage};

const SETTLE: &str = "/api/v1/settle";
const USAGE: &str = "/api/v1/usage";

/// Two services on one database; the first one remembers the pair a/s, its service, its tenant and the key `first`.
async fn remembering() -> [Service; 2] {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    let client = services[0].client();
    register(&client, 5).await;
    for key in ["first", "second"] {
        assert_eq!(client.key(key).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    services
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
    second.client().post(SETTLE, &json!({ "agent": "a", "serviceId": "s" })).await;
    assert_eq!(total(&first.client(), 1).await, 1);
    first.verify().await;
}

#[tokio::test]
async fn a_key_that_another_process_stored_replays_and_conflicts() {
    let [first, second] = remembering().await;
    let (here, there) = (first.client(), second.client());
    let made = there.key("theirs").post(USAGE, &usage("a", "s", 1)).await;
    // Sent to a lane that has every reason to rely on its memory: it never saw the key, and knows the rest.
    total(&here, 1).await;
    let replayed = here.key("theirs").post(USAGE, &usage("a", "s", 1)).await;
    assert!(replayed.replayed && replayed.same(&made), "{replayed:?}");
    assert_eq!(here.key("theirs").post(USAGE, &usage("a", "s", 2)).await.status, 409);
    assert_eq!(there.key("first").post(USAGE, &usage("a", "s", 1)).await.json()["total"], 1);
    assert_eq!(first.number("SELECT outstanding FROM usage_counters").await, 4);
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
    let bill = first.client().post(SETTLE, &json!({ "agent": "a", "serviceId": "s" })).await.json();
    assert_eq!(bill["billedStroops"], 14, "{bill}");
    // A service that is gone has no price at all.
    total(&first.client(), 1).await;
    assert_eq!(second.client().send("DELETE", "/api/v1/services/s", None).await.status, 204);
    let unpriced = first.client().post(SETTLE, &json!({ "agent": "a", "serviceId": "s" })).await.json();
    assert_eq!(unpriced["billedStroops"], 0, "{unpriced}");
}

#[tokio::test]
async fn a_webhook_that_another_process_made_is_told_of_the_next_record() {
    let [first, second] = remembering().await;
    let webhook = json!({ "url": "https://example.com/hook", "events": ["*"] });
    assert_eq!(second.client().post("/api/v1/webhooks", &webhook).await.status, 201);
    total(&first.client(), 1).await;
    assert_eq!(first.number("SELECT count(*) FROM webhook_deliveries").await, 1);
}

#[tokio::test]
async fn a_pair_that_fell_to_zero_takes_room_again() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":1}"#)).await;
    register(&client, 5).await;
    assert_eq!(total(&client, 1).await, 1);
    client.post(SETTLE, &json!({ "agent": "a", "serviceId": "s" })).await;
    assert_eq!(client.post(USAGE, &usage("b", "s", 1)).await.status, 201);
    let full = client.post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(full.error().1, "store_capacity_exceeded", "{full:?}");
}
