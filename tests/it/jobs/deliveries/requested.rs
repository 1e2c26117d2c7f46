//! HTTP contract, section 13.6: deliveries that are requested again, and events that a disabled webhook missed.

use serde_json::{Value, json};

use crate::support::{Behaviour, Client, Receiver, Service, usage};

use super::{Hook, PRIVATE, USAGE, statuses};

async fn request(client: &Client, hook: &Hook, body: Value) -> (i64, bool) {
    let answer = client.post(&format!("{}/redeliver", hook.path), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    (body["resent"].as_i64().expect("a number"), body["hasMore"].as_bool().expect("a flag"))
}

async fn enable(client: &Client, hook: &Hook) {
    let answer = client.send("PATCH", &hook.path, Some(r#"{"events":["*"]}"#)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn failed_deliveries_and_missed_events_are_sent_when_they_are_requested() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    // Before the webhook is created.
    client.post(USAGE, &usage("a", "s", 1)).await;
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    receiver.answer(&[Behaviour::Status(410)]);
    client.post(USAGE, &usage("a", "s", 2)).await;
    receiver.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    assert!(hook.is_disabled(&client).await);
    // While it is disabled.
    client.post(USAGE, &usage("a", "s", 3)).await;
    assert_eq!(request(&client, &hook, json!({ "failedSince": 0 })).await, (0, false));
    assert_eq!(request(&client, &hook, json!({ "missedSince": 0 })).await, (0, false));
    enable(&client, &hook).await;
    client.post(USAGE, &usage("a", "s", 4)).await;
    receiver.reach(2).await;

    assert_eq!(request(&client, &hook, json!({ "failedSince": 0 })).await, (1, false));
    let again = receiver.reach(3).await;
    assert_eq!(again[2].header("webhook-id"), again[0].header("webhook-id"));
    hook.verify(&again[2]);
    let later = service.clock.now().as_ms() + 60_000;
    assert_eq!(request(&client, &hook, json!({ "missedSince": later })).await, (0, false));
    assert_eq!(request(&client, &hook, json!({ "missedSince": 0 })).await, (2, false));
    let received = receiver.reach(5).await;
    let mut requests: Vec<i64> =
        received[3..].iter().map(|received| received.json()["data"]["requests"].as_i64().expect("a number")).collect();
    requests.sort_unstable();
    assert_eq!(requests, [1, 3]);
    service.dispatcher.run_once().await.expect("dispatcher");
    let deliveries = hook.deliveries(&client).await;
    assert_eq!(statuses(&deliveries), ["delivered"; 4]);
    // Each event once.
    assert_eq!(request(&client, &hook, json!({ "missedSince": 0 })).await, (0, false));
    // One of them, by its id.
    let id = deliveries[0]["id"].as_str().expect("an id");
    assert_eq!(request(&client, &hook, json!({ "deliveryIds": [id, "dlv_none"] })).await, (1, false));
    assert_eq!(receiver.reach(6).await[5].header("webhook-id"), id);
}

#[tokio::test]
async fn only_subscribed_events_are_missed() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    client.post(USAGE, &usage("a", "s", 1)).await;
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    let hook = Hook::make(&client, &receiver, &["usage.settled"]).await;
    assert_eq!(request(&client, &hook, json!({ "missedSince": 0 })).await, (1, false));
    assert_eq!(receiver.reach(1).await[0].json()["type"], "usage.settled");
}

#[tokio::test]
async fn a_request_names_exactly_one_selection() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    let one = "exactly one of deliveryIds (1-100 ids), failedSince and missedSince (milliseconds) is required";
    for (body, message) in [
        ("[]".to_owned(), "body must be a JSON object"),
        (r#"{"since":1}"#.to_owned(), "unexpected field: since"),
        ("{}".to_owned(), one),
        (r#"{"failedSince":0,"missedSince":0}"#.to_owned(), one),
        (r#"{"failedSince":-1}"#.to_owned(), one),
        (r#"{"missedSince":"1h"}"#.to_owned(), one),
        (r#"{"deliveryIds":[]}"#.to_owned(), one),
        (r#"{"deliveryIds":[1]}"#.to_owned(), one),
        (json!({ "deliveryIds": vec!["dlv_1"; 101] }).to_string(), one),
    ] {
        let answer = client.send("POST", &format!("{}/redeliver", hook.path), Some(&body)).await;
        assert_eq!(answer.error(), (400, "invalid_request".to_owned(), message.to_owned()), "{body}");
    }
}
