//! HTTP contract, section 13.3: failed attempts, when they are repeated, and when a webhook is disabled.

use std::collections::BTreeSet;
use std::sync::Arc;

use agentpay_billing::jobs::webhooks::dispatcher::Dispatcher;
use agentpay_billing::jobs::webhooks::outcome::Outcome;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{DAY_MS, Hook, PRIVATE, USAGE, WEBHOOKS, statuses};
use crate::support::{Behaviour, Receiver, Service, usage};

/// Moves the clock to the planned attempt of the oldest delivery, and runs.
async fn run_next(service: &Service, hook: &Hook) {
    let deliveries = hook.deliveries(&service.client()).await;
    let next = deliveries.last().expect("a delivery")["nextAttemptAt"].as_i64().expect("a plan");
    service.clock.advance_ms(next - service.clock.now().as_ms());
    service.dispatcher.run_once().await.expect("dispatcher");
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
    // The duration of the attempt is in it.
    assert!((4500..30_000).contains(&pause_ms), "{pause_ms}");

    run_next(&service, &hook).await;
    // A redirect is a failure, and is not followed.
    let two = hook.deliveries(&client).await.remove(0);
    assert_eq!((&two["status"], &two["error"], &two["attempts"]), (&json!("pending"), &json!("status 302"), &json!(2)));
    let pause_ms = two["nextAttemptAt"].as_i64().expect("a plan") - two["lastAttemptAt"].as_i64().expect("ms");
    assert!((270_000..360_000).contains(&pause_ms), "{pause_ms}");
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
async fn a_receiver_that_asks_for_time_gets_it_up_to_a_day() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    for (attempt, (status, value, range)) in [
        (503, "7200", 7_200_000..7_260_000),
        (429, "1", 270_000..390_000),
        (500, "Fri, 31 Dec 9999 23:59:59 GMT", DAY_MS..DAY_MS + 60_000),
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

#[tokio::test]
async fn ten_failed_attempts_disable_the_webhook_until_it_is_changed() {
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

/// Otherwise a receiver could have the service read an internal page for it.
#[tokio::test]
async fn a_redirect_of_a_receiver_is_not_followed_and_its_answer_is_not_shown() {
    let service = Service::start(PRIVATE).await;
    let (client, inside) = (service.client(), Receiver::start().await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("its address"));
    let head = format!("HTTP/1.1 302 Found\r\nlocation: {}\r\nconnection: close\r\n", inside.url);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ =
                socket.write_all(format!("{head}x-word: INSIDE\r\ncontent-length: 6\r\n\r\nINSIDE").as_bytes()).await;
        }
    });
    let made = client.post(WEBHOOKS, &json!({ "url": url, "events": ["*"] })).await.json();
    let path = format!("{WEBHOOKS}/{}", made["id"].as_str().expect("an id"));
    let test = client.send("POST", &format!("{path}/test"), None).await;
    assert!(test.status == 502 && test.error().2.ends_with(": status 302"), "{test:?}");
    client.post(USAGE, &usage("a", "s", 1)).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    let deliveries = client.get(&format!("{path}/deliveries")).await;
    assert!(deliveries.json()["items"].as_array().is_some_and(|items| items.len() == 2), "{deliveries:?}");
    assert!(!format!("{} {:?} {}", test.text, test.headers, deliveries.text).contains("INSIDE"));
    assert_eq!(inside.received().len(), 0);
}
