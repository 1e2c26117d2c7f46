//! HTTP contract, section 13.6: deliveries that are requested again, and events that a disabled webhook missed.

use serde_json::{Value, json};

use crate::support::{Behaviour, Client, Receiver, Service, usage};

use super::{Hook, PRIVATE, USAGE, statuses};

const KEYS: &str = "/api/v1/api-keys";

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

/// Finished deliveries are deleted after seven days. What was delivered must not be taken for missed then.
#[tokio::test]
async fn what_was_delivered_long_ago_is_not_sent_again() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    // Before the webhook is created.
    client.post(USAGE, &usage("a", "s", 1)).await;
    let older = "UPDATE event_runs SET recorded_at = recorded_at - interval '1 day'";
    sqlx::query(older).execute(&service.pool).await.expect("SQL");
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    client.post(USAGE, &usage("a", "s", 2)).await;
    receiver.reach(1).await;
    receiver.answer(&[Behaviour::Status(410)]);
    client.post(USAGE, &usage("a", "s", 3)).await;
    receiver.reach(2).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    assert!(hook.is_disabled(&client).await);
    enable(&client, &hook).await;
    // Eight days later. An event of yesterday was missed.
    let days = "UPDATE event_runs SET recorded_at = recorded_at - interval '8 days';
        UPDATE webhooks SET created_at = created_at - interval '8 days';
        DELETE FROM webhook_deliveries;
        UPDATE webhooks SET disabled_at = now() - interval '2 days'";
    sqlx::raw_sql(days).execute(&service.pool).await.expect("SQL");
    client.post(USAGE, &usage("a", "s", 4)).await;
    enable(&client, &hook).await;
    assert_eq!(request(&client, &hook, json!({ "missedSince": 0 })).await, (2, false));
    let received = receiver.reach(4).await;
    let mut requests: Vec<i64> =
        received[2..].iter().map(|received| received.json()["data"]["requests"].as_i64().expect("a number")).collect();
    requests.sort_unstable();
    assert_eq!(requests, [1, 4]);
}

/// A failure cancels a thousand deliveries at once, and the rest when they are due, which may be a day later.
#[tokio::test]
async fn deliveries_that_are_not_cancelled_yet_can_be_requested_in_steps() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    let rows = "INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, next_attempt_at, attempts)
        SELECT tenant_id, webhook_id, -n, 'dlv_' || lpad(to_hex(n), 32, '0'), now(), 'usage.reset', '{}',
               now() + interval '1 day', 9
        FROM webhooks, generate_series(1, 2100) AS n";
    sqlx::query(rows).execute(&service.pool).await.expect("deliveries");
    let statuses = async |status: &str| {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM webhook_deliveries WHERE status = $1");
        count.bind(status).fetch_one(&service.pool).await.expect("a count")
    };
    receiver.answer(&[Behaviour::Status(410)]);
    client.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!((statuses("cancelled").await, statuses("pending").await), (1000, 1100));
    // Nothing is sent while the test counts.
    let _turn = service.dispatcher.turn.lock().await;
    enable(&client, &hook).await;
    let named = json!({ "deliveryIds": [format!("dlv_{:032x}", 2100)] });
    assert_eq!(request(&client, &hook, named.clone()).await, (1, false));
    assert_eq!(request(&client, &hook, named).await, (0, false));
    for (resent, has_more) in [(1000, true), (1000, true), (100, false), (0, false)] {
        assert_eq!(request(&client, &hook, json!({ "failedSince": 0 })).await, (resent, has_more));
    }
    assert_eq!((statuses("cancelled").await, statuses("pending").await), (0, 2101));
}

#[tokio::test]
async fn missed_events_also_need_the_right_to_read() {
    let service = Service::start(PRIVATE).await;
    let (operator, receiver) = (service.client(), Receiver::start().await);
    let first = operator.post(KEYS, &json!({ "label": "l", "scopes": ["webhooks"] })).await.json();
    let both = json!({ "label": "l", "scopes": ["read", "webhooks"], "tenantId": first["tenantId"] });
    let both = operator.post(KEYS, &both).await.json();
    let as_key = |made: &Value| operator.with("x-api-key", made["key"].as_str().expect("a key"));
    let (of_webhooks, of_both) = (as_key(&first), as_key(&both));
    let hook = Hook::make(&of_webhooks, &receiver, &["*"]).await;
    let path = format!("{}/redeliver", hook.path);
    let refused = of_webhooks.post(&path, &json!({ "missedSince": 0 })).await;
    let message = "the API key needs the scope read or admin".to_owned();
    assert_eq!(refused.error(), (403, "insufficient_scope".to_owned(), message));
    assert_eq!(request(&of_webhooks, &hook, json!({ "failedSince": 0 })).await, (0, false));
    assert_eq!(request(&of_both, &hook, json!({ "missedSince": 0 })).await, (0, false));
    let admin = json!({ "label": "l", "scopes": ["admin"], "tenantId": first["tenantId"] });
    let admin = as_key(&operator.post(KEYS, &admin).await.json());
    assert_eq!(request(&admin, &hook, json!({ "missedSince": 0 })).await, (0, false));
}

#[tokio::test]
async fn the_audit_log_has_what_an_operator_requests() {
    for admin in [None, Some(("ADMIN_API_KEY", "admin"))] {
        let service = Service::start(&[PRIVATE, admin.as_slice()].concat()).await;
        let receiver = Receiver::start().await;
        let operator = if admin.is_some() { service.client().with("x-api-key", "admin") } else { service.client() };
        let made = operator.post(KEYS, &json!({ "label": "l" })).await.json();
        let owner = service.client().with("x-api-key", made["key"].as_str().expect("a key"));
        let acting = operator.with("x-tenant-id", made["tenantId"].as_str().expect("an id"));
        owner.post(USAGE, &usage("a", "s", 1)).await;
        let hook = Hook::make(&owner, &receiver, &["*"]).await;
        let entries = async || {
            let path = "/api/v1/audit?operation=webhook.deliveries_requested";
            operator.get(path).await.json()["items"].as_array().expect("items").clone()
        };
        assert_eq!(request(&acting, &hook, json!({ "missedSince": 7 })).await, (1, false));
        let [entry] = &entries().await[..] else { panic!("one entry") };
        let actor = if admin.is_some() { "admin" } else { "anonymous" };
        assert_eq!((&entry["actor"], &entry["objectId"]), (&json!(actor), &json!(hook.id)));
        assert_eq!(
            (&entry["tenantId"], &entry["after"]),
            (&made["tenantId"], &json!({ "missedSince": 7, "resent": 1 }))
        );
        receiver.reach(1).await;
        service.run_dispatchers().await;
        let id = hook.deliveries(&owner).await[0]["id"].clone();
        assert_eq!(request(&acting, &hook, json!({ "deliveryIds": [id] })).await, (1, false));
        assert_eq!(entries().await[0]["after"], json!({ "deliveryIds": [id], "resent": 1 }));
        // What changes nothing leaves no entry, and neither do the tenant's own requests.
        assert_eq!(request(&acting, &hook, json!({ "missedSince": 7 })).await, (0, false));
        receiver.reach(2).await;
        service.run_dispatchers().await;
        assert_eq!(request(&owner, &hook, json!({ "deliveryIds": [id] })).await, (1, false));
        assert_eq!(entries().await.len(), 2);
    }
}
