//! HTTP contract, section 13.5: during an overlap, receivers verify with either secret.

use serde_json::{Value, json};

use crate::support::{Received, Receiver, Service, usage};

use super::{Hook, PRIVATE, USAGE};

/// Whether the library of a receiver with this secret accepts the delivery.
fn accepts(secret: &Value, received: &Received) -> bool {
    let verifier = standardwebhooks::Webhook::new(secret.as_str().expect("a secret")).expect("a secret");
    verifier.verify(received.body.as_bytes(), &received.headers).is_ok()
}

#[tokio::test]
async fn deliveries_have_a_signature_of_each_secret_until_the_overlap_ends() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    let path = format!("{}/rotate-secret", hook.path);
    let rotated = client.send("POST", &path, None).await;
    let second = rotated.json();
    let until = second["previousSecretExpiresAt"].as_i64().expect("a moment");
    let body = format!(r#"{{"id":"{}","secret":{},"previousSecretExpiresAt":{until}}}"#, hook.id, second["secret"]);
    assert_eq!((rotated.status, rotated.header("cache-control").as_str(), rotated.text), (200, "no-store", body));
    assert!((until - 86_400_000 - service.clock.now().as_ms()).abs() < 60_000);
    client.post(USAGE, &usage("a", "s", 1)).await;
    let received = receiver.reach(1).await.remove(0);
    assert_eq!(received.header("webhook-signature").split(' ').count(), 2);
    assert!(hook.verifier.verify(received.body.as_bytes(), &received.headers).is_ok());
    assert!(accepts(&second["secret"], &received));
    // Another rotation ends the overlap with the first secret.
    let third = client.send("POST", &path, Some(r#"{"overlapSeconds":60}"#)).await.json();
    client.post(USAGE, &usage("a", "s", 1)).await;
    let received = receiver.reach(2).await.remove(1);
    assert!(hook.verifier.verify(received.body.as_bytes(), &received.headers).is_err());
    assert!(accepts(&second["secret"], &received) && accepts(&third["secret"], &received));
    sqlx::query("UPDATE webhooks SET previous_secret_until = now()").execute(&service.pool).await.expect("SQL");
    client.post(USAGE, &usage("a", "s", 1)).await;
    let received = receiver.reach(3).await.remove(2);
    assert_eq!(received.header("webhook-signature").split(' ').count(), 1);
    assert!(!accepts(&second["secret"], &received) && accepts(&third["secret"], &received));
    // Without an overlap the old secret ends at once.
    let fourth = client.send("POST", &path, Some(r#"{"overlapSeconds":0}"#)).await.json();
    client.post(USAGE, &usage("a", "s", 1)).await;
    let received = receiver.reach(4).await.remove(3);
    assert!(!accepts(&third["secret"], &received) && accepts(&fourth["secret"], &received));
}

#[tokio::test]
async fn a_rotation_is_checked_and_shows_no_secret_in_the_audit_log() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["*"]).await;
    for (path, body, status, message) in [
        (hook.path.as_str(), "[]", 400, "body must be a JSON object".to_owned()),
        (hook.path.as_str(), r#"{"url":"x"}"#, 400, "unexpected field: url".to_owned()),
        (
            hook.path.as_str(),
            r#"{"overlapSeconds":-1}"#,
            400,
            "overlapSeconds must be an integer between 0 and 2592000".to_owned(),
        ),
        ("/api/v1/webhooks/none", "{}", 404, "webhook none not registered".to_owned()),
    ] {
        let answer = client.send("POST", &format!("{path}/rotate-secret"), Some(body)).await;
        assert_eq!((answer.status, answer.error().2), (status, message), "{path} {body}");
    }
    let rotated = client.send("POST", &format!("{}/rotate-secret", hook.path), None).await.json();
    let log = client.get("/api/v1/audit?operation=webhook.secret_rotated").await;
    let entry = log.json()["items"][0].clone();
    let mut after = entry["before"].clone();
    after["previousSecretExpiresAt"] = rotated["previousSecretExpiresAt"].clone();
    assert_eq!((&entry["objectId"], &entry["after"]), (&json!(hook.id), &after));
    assert!(!log.text.contains("whsec_"));
}
