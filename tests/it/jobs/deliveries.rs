//! HTTP contract, sections 13.2 to 13.4: real HTTP to a real receiver, verified by a library that is not ours.

mod attempts;
mod encryption;
mod requested;
mod scheduling;
mod secrets;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agentpay_billing::domain::event::event_id;
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::jobs::webhooks::dispatcher::Dispatcher;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{Behaviour, Client, Received, Receiver, Service, free_port, new_database, url, usage};

const WEBHOOKS: &str = "/api/v1/webhooks";
const USAGE: &str = "/api/v1/usage";
const PRIVATE: &[(&str, &str)] = &[("WEBHOOK_ALLOW_PRIVATE", "true")];
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// A webhook as its owner holds it.
struct Hook {
    id: String,
    path: String,
    verifier: standardwebhooks::Webhook,
}

impl Hook {
    async fn make(client: &Client, receiver: &Receiver, events: &[&str]) -> Self {
        let made = client.post(WEBHOOKS, &json!({ "url": receiver.url, "events": events })).await.json();
        let id = made["id"].as_str().expect("an id").to_owned();
        let verifier = standardwebhooks::Webhook::new(made["secret"].as_str().expect("a secret")).expect("a secret");
        Self { path: format!("{WEBHOOKS}/{id}"), id, verifier }
    }

    /// The signature is right for the timestamp it names, which may be far from now.
    fn verify(&self, received: &Received) {
        let timestamp = received.header("webhook-timestamp").parse().expect("seconds");
        let signature = self.verifier.sign(received.header("webhook-id"), timestamp, received.body.as_bytes());
        assert_eq!(received.header("webhook-signature"), signature.expect("a signature"));
    }

    /// Its deliveries, newest first.
    async fn deliveries(&self, client: &Client) -> Vec<Value> {
        let page = client.get(&format!("{}/deliveries?limit=500", self.path)).await.json();
        page["items"].as_array().expect("items").clone()
    }

    async fn is_disabled(&self, client: &Client) -> bool {
        client.get(&self.path).await.json()["disabledAt"].is_i64()
    }
}

fn statuses(deliveries: &[Value]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery["status"].as_str().expect("a status")).collect()
}

#[tokio::test]
async fn an_event_arrives_signed() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["usage.recorded"]).await;
    client.post(USAGE, &usage("agent-1", "svc-1", 5)).await;
    let received = receiver.reach(1).await.remove(0);
    hook.verifier.verify(received.body.as_bytes(), &received.headers).expect("signed, and now");
    let mut forged = received.headers.clone();
    forged.insert("webhook-id", "dlv_00000000000000000000000000000000".parse().expect("a value"));
    assert!(hook.verifier.verify(received.body.as_bytes(), &forged).is_err());
    assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/hook"));
    assert_eq!(received.header("content-type"), "application/json");
    assert_eq!(received.header("user-agent"), format!("agentpay-billing/{}", env!("CARGO_PKG_VERSION")));
    let id = received.header("webhook-id");
    let is_hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(id.len() == 36 && id.starts_with("dlv_") && is_hexadecimal(&id[4..]), "{id}");

    let (recorded_at, position): (OffsetDateTime, i64) =
        sqlx::query_as("SELECT recorded_at, position FROM events").fetch_one(&service.pool).await.expect("the event");
    let event = event_id(Timestamp::from(recorded_at), position);
    let (date, time) = (recorded_at.date(), recorded_at.to_hms_milli());
    let moment = format!("{date}T{:02}:{:02}:{:02}.{:03}Z", time.0, time.1, time.2, time.3);
    let expected = format!(
        r#"{{"id":"{event}","type":"usage.recorded","timestamp":"{moment}","data":{{"agent":"agent-1","serviceId":"svc-1","requests":5,"total":5}}}}"#
    );
    assert_eq!(received.body, expected);

    service.dispatcher.run_once().await.expect("dispatcher");
    let ms = Timestamp::from(recorded_at).as_ms();
    let page = client.get(&format!("{}/deliveries", hook.path)).await;
    let last = page.json()["items"][0]["lastAttemptAt"].as_i64().expect("ms");
    let expected = format!(
        r#"{{"items":[{{"id":"{id}","eventId":"{event}","type":"usage.recorded","status":"delivered","attempts":1,"createdAt":{ms},"lastAttemptAt":{last},"nextAttemptAt":null,"responseStatus":200,"error":null}}],"nextCursor":null}}"#
    );
    assert_eq!(page.text, expected);
}

#[tokio::test]
async fn each_event_goes_to_the_enabled_subscribers_of_its_tenant() {
    let service = Service::start(PRIVATE).await;
    let receivers = [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let key = service.client().post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let client = service.client().with("x-api-key", key["key"].as_str().expect("a key"));
    // Without a webhook no delivery is written.
    client.post(USAGE, &usage("a", "s", 1)).await;
    Hook::make(&client, &receivers[0], &["*"]).await;
    Hook::make(&client, &receivers[1], &["usage.settled", "service.disabled"]).await;
    Hook::make(&service.client(), &receivers[2], &["*"]).await;
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 2 })).await;
    client.post("/api/v1/usage/bulk", &json!({ "items": [usage("a", "s", 2), usage("b", "s", 3)] })).await;
    client.post("/api/v1/services/s/disable", &json!({})).await;
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    let all = receivers[0].reach(4).await;
    let some = receivers[1].reach(2).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    let events = |received: &[Received]| {
        let texts = received.iter().map(|one| {
            let body = one.json();
            format!("{} {}", body["type"].as_str().expect("a type"), body["data"])
        });
        texts.collect::<BTreeSet<String>>()
    };
    let tenant = key["tenantId"].as_str().expect("a tenant");
    let common = [
        format!(r#"service.disabled {{"serviceId":"s","tenantId":"{tenant}"}}"#),
        r#"usage.settled {"agent":"a","serviceId":"s","requests":3,"billedStroops":6}"#.to_owned(),
    ];
    let recorded = [
        r#"usage.recorded {"agent":"a","serviceId":"s","requests":2,"total":3,"bulk":true}"#.to_owned(),
        r#"usage.recorded {"agent":"b","serviceId":"s","requests":3,"total":3,"bulk":true}"#.to_owned(),
    ];
    assert_eq!(events(&some), common.iter().cloned().collect());
    assert_eq!(events(&all), common.into_iter().chain(recorded).collect());
    assert_eq!(receivers[2].received().len(), 0);
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries").await, 6);
    // Two webhooks hear of one event by deliveries of their own.
    assert_eq!(service.number("SELECT count(DISTINCT event_position) FROM webhook_deliveries").await, 4);
}

#[tokio::test]
async fn pending_deliveries_are_deleted_with_their_webhook() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    receiver.answer(&[Behaviour::Status(200), Behaviour::Status(500)]);
    for count in 1..=2 {
        client.post(USAGE, &usage("a", "s", 1)).await;
        receiver.reach(count).await;
        service.dispatcher.run_once().await.expect("dispatcher");
    }
    assert_eq!(client.send("DELETE", &hook.path, None).await.status, 204);
    assert_eq!(client.get(&hook.path).await.status, 404);
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'").await, 0);
    // One that was written while its webhook was being deleted is dropped when it is due.
    let orphan = "UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now(), finished_at = NULL;
        INSERT INTO webhook_queues (tenant_id, webhook_id, due_at)
        SELECT DISTINCT tenant_id, webhook_id, now() FROM webhook_deliveries
        ON CONFLICT (tenant_id, webhook_id) DO UPDATE SET due_at = excluded.due_at";
    sqlx::raw_sql(orphan).execute(&service.pool).await.expect("an orphan");
    service.clock.advance_ms(MINUTE_MS);
    service.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries").await, 0);
    assert_eq!(service.number("SELECT count(*) FROM webhook_queues").await, 0);
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test]
async fn finished_deliveries_are_listed_for_seven_days_in_pages() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    client.post("/api/v1/usage/bulk", &json!({ "items": [usage("a", "s", 1), usage("b", "s", 1)] })).await;
    for _ in 0..3 {
        service.clock.advance_ms(1);
        client.post(USAGE, &usage("a", "s", 1)).await;
    }
    receiver.reach(5).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    let all = hook.deliveries(&client).await;
    let times: Vec<i64> = all.iter().map(|delivery| delivery["createdAt"].as_i64().expect("ms")).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older) && all.len() == 5);
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{}/deliveries?limit=2{cursor}", hook.path)).await.json();
        pages.push(page["items"].as_array().expect("items").clone());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((pages.len(), pages.concat()), (3, all));
    for (query, message) in [
        ("cursor=!!", "cursor is malformed"),
        ("cursor=", "cursor is malformed"),
        ("cursor=bWlzc2luZy1rZXk", "cursor is malformed"),
        ("status=failed", "unexpected query parameter: status"),
    ] {
        let refused = client.get(&format!("{}/deliveries?{query}", hook.path)).await.error();
        assert_eq!((refused.0, refused.2.as_str()), (400, message));
    }
    // Pending ones stay however old they are.
    receiver.usually(Behaviour::Silence);
    let _turn = service.dispatcher.turn.lock().await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    let other =
        Dispatcher { turn: Arc::default(), attempt_limit: Duration::from_millis(50), ..service.dispatcher.clone() };
    service.clock.advance_ms(7 * DAY_MS - MINUTE_MS);
    assert_eq!(other.run_once().await.expect("dispatcher").pruned, 0);
    service.clock.advance_ms(2 * MINUTE_MS);
    assert_eq!(other.run_once().await.expect("dispatcher").pruned, 5);
    let left = hook.deliveries(&client).await;
    assert_eq!((statuses(&left), &left[0]["error"]), (vec!["pending"], &json!("timeout")));
    assert_eq!(left[0]["responseStatus"], json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_whose_service_was_killed_is_sent_again_with_the_same_id() {
    let database = new_database().await;
    let receiver = Receiver::start().await;
    let port = free_port();
    let mut child = Command::new(env!("CARGO_BIN_EXE_agentpay-billing"))
        .env("DATABASE_URL", url(&database))
        .env("PORT", port.to_string())
        .env("WEBHOOK_ALLOW_PRIVATE", "true")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("server started")));
    let log = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<String>>());
    let client = Client::new(([127, 0, 0, 1], port).into());
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    receiver.answer(&[Behaviour::Silence]);
    client.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    child.kill().expect("kill -9");
    child.wait().expect("its end");

    let service = Service::start_on(database, PRIVATE).await;
    // Its lease keeps the delivery from every other dispatcher for a while.
    service.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(receiver.received().len(), 1);
    service.clock.advance_ms(MINUTE_MS + 1);
    service.dispatcher.run_once().await.expect("dispatcher");
    let received = receiver.received();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    received.iter().for_each(|one| hook.verify(one));
    assert_eq!(statuses(&hook.deliveries(&service.client()).await), ["delivered"]);
    let secret = service.client().get(&hook.path).await;
    assert_eq!(secret.json()["id"], hook.id.as_str());
    assert!(!log.join().expect("the log").iter().any(|line| line.contains("whsec_")));
}
