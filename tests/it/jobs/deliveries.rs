//! HTTP contract, sections 13.2 to 13.4: real HTTP to a real receiver, verified by a library that is not ours.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agentpay_billing::domain::event::event_id;
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::domain::webhook::Secret;
use agentpay_billing::jobs::webhooks::dispatcher::Dispatcher;
use agentpay_billing::jobs::webhooks::outcome::Outcome;
use agentpay_billing::jobs::webhooks::sender::{Egress, Failure, Names, Sender};
use agentpay_billing::store::pool::Pool;
use agentpay_billing::store::webhooks::Target;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{Behaviour, Client, LIMIT, Received, Receiver, Service, new_database, url, usage, wait_until};

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

/// Moves the clock to the planned attempt of the oldest delivery, and runs.
async fn run_next(service: &Service, hook: &Hook) {
    let deliveries = hook.deliveries(&service.client()).await;
    let next = deliveries.last().expect("a delivery")["nextAttemptAt"].as_i64().expect("a plan");
    service.clock.advance_ms(next - service.clock.now().as_ms());
    service.dispatcher.run_once().await.expect("dispatcher");
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
    // Nobody listens: no delivery is written.
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
async fn a_failed_delivery_is_tried_again_with_the_same_id() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    receiver.answer(&[Behaviour::Status(500), Behaviour::Status(302), Behaviour::Status(204)]);
    client.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    let one = hook.deliveries(&client).await.remove(0);
    assert_eq!((&one["status"], &one["attempts"]), (&json!("pending"), &json!(1)));
    assert_eq!((&one["responseStatus"], &one["error"]), (&json!(500), &json!("status 500")));
    let pause_ms = one["nextAttemptAt"].as_i64().expect("a plan") - one["lastAttemptAt"].as_i64().expect("ms");
    assert!((4500..7500).contains(&pause_ms), "{pause_ms}");

    run_next(&service, &hook).await;
    // A redirect is a failure, and is not followed.
    let two = hook.deliveries(&client).await.remove(0);
    assert_eq!((&two["status"], &two["error"], &two["attempts"]), (&json!("pending"), &json!("status 302"), &json!(2)));
    let pause_ms = two["nextAttemptAt"].as_i64().expect("a plan") - two["lastAttemptAt"].as_i64().expect("ms");
    assert!((270_000..332_000).contains(&pause_ms), "{pause_ms}");
    assert_eq!(receiver.received().len(), 2);
    run_next(&service, &hook).await;
    let three = hook.deliveries(&client).await.remove(0);
    assert_eq!((&three["status"], &three["error"]), (&json!("delivered"), &json!(null)));
    assert_eq!((&three["responseStatus"], &three["nextAttemptAt"]), (&json!(204), &json!(null)));
    service.clock.advance_ms(DAY_MS);
    service.dispatcher.run_once().await.expect("dispatcher");

    let received = receiver.received();
    assert_eq!(received.len(), 3);
    let ids: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
    let timestamps: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-timestamp")).collect();
    let bodies: BTreeSet<&str> = received.iter().map(|one| one.body.as_str()).collect();
    assert_eq!((ids.len(), timestamps.len(), bodies.len()), (1, 3, 1));
    received.iter().for_each(|one| hook.verify(one));
}

#[tokio::test]
async fn ten_failed_attempts_give_the_webhook_up_until_it_is_changed() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    receiver.usually(Behaviour::Status(503));
    client.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    for _ in 2..10 {
        run_next(&service, &hook).await;
    }
    assert!(!hook.is_disabled(&client).await);
    client.post(USAGE, &usage("a", "s", 2)).await;
    receiver.reach(10).await;
    run_next(&service, &hook).await;
    let deliveries = hook.deliveries(&client).await;
    assert_eq!(statuses(&deliveries), ["cancelled", "failed"]);
    assert_eq!((&deliveries[1]["attempts"], &deliveries[1]["error"]), (&json!(10), &json!("status 503")));
    assert!(deliveries.iter().all(|delivery| delivery["nextAttemptAt"].is_null()));
    assert!(hook.is_disabled(&client).await);
    // Disabled: new events make no deliveries.
    client.post(USAGE, &usage("a", "s", 3)).await;
    assert_eq!(hook.deliveries(&client).await.len(), 2);
    assert_eq!(client.send("PATCH", &hook.path, Some("{}")).await.status, 400);
    assert!(hook.is_disabled(&client).await);
    receiver.usually(Behaviour::Status(200));
    let before = receiver.received().len();
    let enabled = client.send("PATCH", &hook.path, Some(r#"{"events":["*"]}"#)).await.json();
    assert!(enabled.get("disabledAt").is_none());
    client.post(USAGE, &usage("a", "s", 4)).await;
    receiver.reach(before + 1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(statuses(&hook.deliveries(&client).await), ["delivered", "cancelled", "failed"]);
    assert_eq!(receiver.received().len(), before + 1);
}

#[tokio::test]
async fn a_receiver_that_is_gone_disables_its_webhook_at_once() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    receiver.answer(&[Behaviour::Status(500), Behaviour::Status(410)]);
    client.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    client.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(2).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    let deliveries = hook.deliveries(&client).await;
    assert_eq!(statuses(&deliveries), ["failed", "cancelled"]);
    assert_eq!((&deliveries[0]["responseStatus"], &deliveries[0]["error"]), (&json!(410), &json!("status 410")));
    assert!(hook.is_disabled(&client).await);
}

#[tokio::test]
async fn what_is_open_goes_with_its_webhook() {
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

#[tokio::test]
async fn a_slow_receiver_does_not_keep_the_others_waiting() {
    let service = Service::start(PRIVATE).await;
    let (client, slow, quick) = (service.client(), Receiver::start().await, Receiver::start().await);
    slow.usually(Behaviour::Silence);
    Hook::make(&client, &slow, &["*"]).await;
    Hook::make(&client, &quick, &["*"]).await;
    for _ in 0..3 {
        let items: Vec<Value> = (0..100).map(|number| usage(&format!("agent-{number}"), "s", 1)).collect();
        client.post("/api/v1/usage/bulk", &json!({ "items": items })).await;
    }
    // Sooner than the first attempt to the slow one is given up: the wait is bounded below its limit.
    quick.reach(300).await;
    assert!(slow.received().len() < 10, "{}", slow.received().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn dispatchers_share_the_work_and_send_nothing_twice() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), PRIVATE).await, Service::start_on(database, PRIVATE).await];
    let turns = (
        services[0].dispatcher.turn.clone().lock_owned().await,
        services[1].dispatcher.turn.clone().lock_owned().await,
    );
    let (client, receivers) = (services[0].client(), [Receiver::start().await, Receiver::start().await]);
    for receiver in &receivers {
        Hook::make(&client, receiver, &["*"]).await;
        Hook::make(&client, receiver, &["usage.recorded"]).await;
    }
    for _ in 0..2 {
        let items: Vec<Value> = (0..100).map(|number| usage(&format!("agent-{number}"), "s", 1)).collect();
        client.post("/api/v1/usage/bulk", &json!({ "items": items })).await;
    }
    let run = |service: &Service| {
        let dispatcher = Dispatcher { turn: Arc::default(), ..service.dispatcher.clone() };
        let receivers = receivers.clone();
        tokio::spawn(async move {
            let mut delivered = 0;
            // While the other one expands the events, there is nothing to do.
            while receivers.iter().map(|receiver| receiver.received().len()).sum::<usize>() < 800 {
                let report = dispatcher.run_once().await.expect("dispatcher");
                assert!(report.outcomes.keys().all(|outcome| *outcome == Outcome::Delivered), "{report:?}");
                delivered += report.outcomes.get(&Outcome::Delivered).copied().unwrap_or_default();
            }
            delivered
        })
    };
    let (left, right) = tokio::join!(run(&services[0]), run(&services[1]));
    let delivered = [left.expect("a task"), right.expect("a task")];
    assert!(delivered[0] + delivered[1] == 800 && delivered[0] > 0 && delivered[1] > 0, "{delivered:?}");
    let received: Vec<Received> = receivers.iter().flat_map(Receiver::received).collect();
    let ids: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!((received.len(), ids.len()), (800, 800));
    drop(turns);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_whose_service_was_killed_is_sent_again_with_the_same_id() {
    let database = new_database().await;
    let receiver = Receiver::start().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
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
    // Its lease keeps the delivery for a while, whoever asks.
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

#[tokio::test]
async fn addresses_are_judged_when_they_are_connected_to() {
    let receiver = Receiver::start().await;
    let outgoing = crate::jobs::egress::outgoing();
    let send = async |host: &str, allow_private: bool| {
        // A name server of the attacker's: the name was fine at registration.
        let loopback: IpAddr = "127.0.0.1".parse().expect("an address");
        let names = Names::Fixed([("rebound.example".to_owned(), loopback)].into());
        let url = receiver.url.replace("127.0.0.1", host);
        let target = Target { url, secret: Secret::from_stored([7; 32]), is_enabled: true, from_position: 0 };
        let sender = Sender::new(Egress { allow_private, names, proxy: None });
        sender.send(&outgoing, &target, Timestamp::from_ms(0), Duration::from_secs(5)).await
    };
    for host in ["rebound.example", "127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "localhost"] {
        assert_eq!(send(host, false).await, Err(Failure::PrivateAddress), "{host}");
    }
    assert_eq!(receiver.received().len(), 0);
    assert_eq!(send("rebound.example", true).await, Ok(200));
    assert_eq!(send("nowhere.example", true).await, Err(Failure::Connection));
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn a_private_target_is_refused_at_every_attempt_and_tried_again() {
    let service = Service::start(&[]).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let made = client.post(WEBHOOKS, &json!({ "url": "https://example.com", "events": ["*"] })).await.json();
    // As if it had been registered where private targets are allowed.
    sqlx::query("UPDATE webhooks SET url = $1").bind(&receiver.url).execute(&service.pool).await.expect("url");
    let _turn = service.dispatcher.turn.lock().await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    let dispatcher = Dispatcher { turn: Arc::default(), ..service.dispatcher.clone() };
    let report = dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(report.outcomes, [(Outcome::Refused, 1)].into());
    let path = format!("{WEBHOOKS}/{}/deliveries", made["id"].as_str().expect("an id"));
    let delivery = client.get(&path).await.json()["items"][0].clone();
    assert_eq!((&delivery["status"], &delivery["error"]), (&json!("pending"), &json!("private address")));
    assert_eq!(receiver.received().len(), 0);
}

/// Copies the one webhook of the table, with the ids `wh_` and a number from 1 on.
async fn copy_webhook(service: &Service, copies: i64) {
    let copy = "INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, created_at, from_position)
        SELECT tenant_id, 'wh_' || lpad(to_hex(number), 16, '0'), url, events, secret, created_at, from_position
        FROM webhooks CROSS JOIN generate_series(1, $1) AS number";
    sqlx::query(copy).bind(copies).execute(&service.pool).await.expect("webhooks");
}

async fn tenant(service: &Service) -> Client {
    let key = service.client().post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    service.client().with("x-api-key", key["key"].as_str().expect("a key"))
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_never_answer_do_not_keep_another_tenants_delivery_waiting() {
    let service = Service::start(PRIVATE).await;
    let (silent, quick) = (Receiver::start().await, Receiver::start().await);
    silent.usually(Behaviour::Silence);
    let (first, second) = (tenant(&service).await, tenant(&service).await);
    Hook::make(&first, &silent, &["*"]).await;
    copy_webhook(&service, 511).await;
    Hook::make(&second, &quick, &["*"]).await;
    let _turn = service.dispatcher.turn.lock().await;
    // No attempt is given up as long as this test may take.
    let dispatcher = Dispatcher { turn: Arc::default(), attempt_limit: 10 * LIMIT, ..service.dispatcher.clone() };
    first.post(USAGE, &usage("a", "s", 1)).await;
    let run = tokio::spawn(async move { dispatcher.run_once().await });
    let tried = silent.reach(32).await;
    let began = std::time::Instant::now();
    second.post(USAGE, &usage("a", "s", 1)).await;
    quick.reach(1).await;
    println!("the other tenant's delivery arrived after {:?}, with {} unanswered", began.elapsed(), tried.len());
    run.abort();
}

#[tokio::test]
async fn what_is_not_due_is_not_looked_at() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    Hook::make(&client, &receiver, &["*"]).await;
    let _turn = service.dispatcher.turn.lock().await;
    copy_webhook(&service, 3000).await;
    let retries = "INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, attempts, next_attempt_at)
        SELECT tenant_id, webhook_id, 0, 'dlv_' || md5(webhook_id), now(), 'usage.reset', '{}', 1, now() + interval '1 day'
        FROM webhooks;
        INSERT INTO webhook_queues (tenant_id, webhook_id, due_at)
        SELECT tenant_id, webhook_id, next_attempt_at FROM webhook_deliveries";
    sqlx::raw_sql(retries).execute(&service.pool).await.expect("retries");
    // What a session has read is told when it ends.
    let probes = async || {
        service
            .number(
                "SELECT sum(seq_scan + idx_scan)::bigint FROM pg_stat_user_tables
                 WHERE relname IN ('webhooks', 'webhook_queues', 'webhook_deliveries', 'outbox')",
            )
            .await
    };
    let before = probes().await;
    let options = (*service.pool.connect_options()).clone().application_name("counted");
    let pool = Pool::new(options, 1, LIMIT);
    let dispatcher = Dispatcher { turn: Arc::default(), pool: pool.clone(), ..service.dispatcher.clone() };
    assert!(dispatcher.run_once().await.expect("dispatcher").outcomes.is_empty());
    pool.close(LIMIT).await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted'";
    wait_until(async || service.number(sessions).await == 0).await;
    let made = probes().await - before;
    assert!((1..20).contains(&made), "{made} probes");
}

#[tokio::test]
async fn what_finished_long_ago_is_deleted_while_a_receiver_is_slow() {
    let service = Service::start(PRIVATE).await;
    let (client, quick, slow) = (service.client(), Receiver::start().await, Receiver::start().await);
    Hook::make(&client, &quick, &["usage.recorded"]).await;
    Hook::make(&client, &slow, &["usage.reset"]).await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    quick.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    slow.usually(Behaviour::Silence);
    let _turn = service.dispatcher.turn.lock().await;
    let dispatcher = Dispatcher { turn: Arc::default(), attempt_limit: 10 * LIMIT, ..service.dispatcher.clone() };
    client.send("DELETE", "/api/v1/usage/a/s", None).await;
    let run = tokio::spawn(async move { dispatcher.run_once().await });
    slow.reach(1).await;
    service.clock.advance_ms(8 * DAY_MS);
    wait_until(async || {
        service.number("SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'").await == 0
    })
    .await;
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries").await, 1);
    run.abort();
}

#[tokio::test]
async fn a_receiver_that_asks_for_time_gets_it_up_to_a_day() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    for (attempt, (status, value, range)) in [
        (503, "7200", 7_200_000..7_205_000),
        (429, "1", 270_000..335_000),
        (500, "Fri, 31 Dec 9999 23:59:59 GMT", DAY_MS..DAY_MS + 5000),
    ]
    .into_iter()
    .enumerate()
    {
        receiver.answer(&[Behaviour::RetryAfter(status, value)]);
        if attempt == 0 {
            client.post(USAGE, &usage("a", "s", 1)).await;
            receiver.reach(1).await;
            service.dispatcher.run_once().await.expect("dispatcher");
        } else {
            run_next(&service, &hook).await;
        }
        let delivery = hook.deliveries(&client).await.remove(0);
        assert_eq!((&delivery["status"], &delivery["attempts"]), (&json!("pending"), &json!(attempt + 1)));
        let ms = |name: &str| delivery[name].as_i64().expect("ms");
        let pause_ms = ms("nextAttemptAt") - ms("lastAttemptAt");
        assert!(range.contains(&pause_ms), "{value}: {pause_ms}");
    }
}
