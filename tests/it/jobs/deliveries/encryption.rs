//! Secrets of webhooks are encrypted at rest (docs/adr/0017): nothing in the database gives one away, the keys can be replaced
//! while deliveries go on, and without the right key nothing is sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{Receiver, Service, run, url, usage, wait_until};

use super::{Hook, MINUTE_MS, USAGE, WEBHOOKS};

const PENDING: &str = "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'";

/// The entry after which keys decrypt only.
const PLAIN: (&str, u8) = ("plain", 0);

/// Settings with these keys: each an id, and the byte that fills the key.
fn settings(keys: &[(&str, u8)]) -> Vec<(&'static str, String)> {
    let keys = keys.iter().map(|key| match *key {
        PLAIN => "plain".to_owned(),
        (id, byte) => format!("{id}:{}", STANDARD.encode([byte; 32])),
    });
    vec![("WEBHOOK_ALLOW_PRIVATE", "true".to_owned()), ("ENCRYPTION_KEYS", keys.collect::<Vec<_>>().join(","))]
}

fn as_pairs<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn start(keys: &[(&str, u8)]) -> Service {
    Service::start(&as_pairs(&settings(keys))).await
}

/// Another replica with other keys. The first one sends nothing any more.
async fn replace(service: &Service, keys: &[(&str, u8)]) -> Service {
    // Held until the end of the test.
    std::mem::forget(service.dispatcher.turn.clone().lock_owned().await);
    Service::start_on((*service.pool.connect_options()).clone(), &as_pairs(&settings(keys))).await
}

/// Everything in the database, as text.
async fn dump(service: &Service) -> String {
    let tables = "SELECT relname::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                  WHERE nspname = 'public' AND relkind = 'r' ORDER BY relname";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&service.pool).await.expect("tables");
    assert!(tables.len() > 15, "{tables:?}");
    let mut dump = String::new();
    for table in tables {
        let rows = format!("SELECT coalesce(string_agg(row::text, E'\\n'), '') FROM {table} AS row");
        let rows: String = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&service.pool).await.expect("rows");
        dump.push_str(&rows);
    }
    dump
}

/// Every form in which a row could hold a secret.
fn forms(secret: &Value) -> [String; 2] {
    let text = secret.as_str().expect("a secret").trim_start_matches("whsec_").to_owned();
    let bytes = STANDARD.decode(&text).expect("base64");
    [text, bytes.iter().map(|byte| format!("{byte:02x}")).collect()]
}

/// Makes secrets of both kinds: of webhooks, one of them rotated, and API keys.
async fn make_secrets(service: &Service) -> (Vec<String>, Vec<String>) {
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = client.key("k-1").post(WEBHOOKS, &json!({ "url": receiver.url, "events": ["*"] })).await.json();
    let path = format!("{WEBHOOKS}/{}", hook["id"].as_str().expect("an id"));
    let rotated = client.key("k-2").send("POST", &format!("{path}/rotate-secret"), Some("{}")).await.json();
    assert_eq!(client.key("k-3").send("POST", &format!("{path}/test"), None).await.status, 200);
    client.key("k-4").post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(2).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    let key = client.key("k-5").post("/api/v1/api-keys", &json!({ "label": "l" })).await.json()["key"].clone();
    let key = key.as_str().expect("a key").to_owned();
    let renewed = client.key("k-6").send("POST", &format!("/api/v1/api-keys/{}/rotate", &key[..12]), Some("{}")).await;
    let renewed = renewed.json()["key"].as_str().expect("a key").to_owned();
    let of_webhooks = [forms(&hook["secret"]), forms(&rotated["secret"])].concat();
    (of_webhooks, vec![key, renewed])
}

#[tokio::test]
async fn the_whole_database_holds_no_secret_if_they_are_encrypted() {
    let service = start(&[("a", 1)]).await;
    let (of_webhooks, api_keys) = make_secrets(&service).await;
    let encrypted = dump(&service).await;
    for secret in of_webhooks.iter().chain(&api_keys) {
        assert!(!encrypted.contains(secret.as_str()), "{secret}");
    }
    assert!(!encrypted.contains("whsec_"));
    // The same search finds the secrets of webhooks without the setting, and API keys never.
    let service = Service::start(super::PRIVATE).await;
    let (of_webhooks, api_keys) = make_secrets(&service).await;
    let plain = dump(&service).await;
    assert_eq!(of_webhooks.iter().filter(|secret| plain.contains(secret.as_str())).count(), 2);
    assert!(!api_keys.iter().any(|key| plain.contains(key.as_str())) && !plain.contains("whsec_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_replaced_while_deliveries_go_on() {
    let receiver = Receiver::start().await;
    // Plain text at first.
    let service = start(&[]).await;
    let hook = Hook::make(&service.client(), &receiver, &["*"]).await;
    let deliver = async |service: &Service, count: usize| {
        service.client().post(USAGE, &usage("a", "s", 1)).await;
        hook.verify(&receiver.reach(count).await[count - 1]);
    };
    deliver(&service, 1).await;
    let rewrite = async |service: &Service, keys: &[(&str, u8)]| {
        let database = url(&service.pool.connect_options());
        let settings = settings(keys);
        let environment = [as_pairs(&settings), vec![("DATABASE_URL", database.as_str())]].concat();
        let output = run(&["secrets", "encrypt", "--format", "json"], &environment).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let key_ids = async |service: &Service| {
        let ids = "SELECT concat_ws(' ', coalesce(secret_key_id, '-'), previous_secret_key_id) FROM webhooks";
        sqlx::query_scalar::<_, String>(ids).fetch_one(&service.pool).await.expect("a webhook")
    };
    let service = replace(&service, &[("a", 1)]).await;
    deliver(&service, 2).await;
    let report = rewrite(&service, &[("a", 1)]).await;
    assert_eq!((&report["rewritten"], &report["keys"]), (&json!(1), &json!([{ "keyId": "a", "secrets": 1 }])));
    deliver(&service, 3).await;
    // The new key comes first, and the old one decrypts until everything is encrypted with the new one.
    let service = replace(&service, &[("b", 2), ("a", 1)]).await;
    deliver(&service, 4).await;
    let rotated = service.client().send("POST", &format!("{}/rotate-secret", hook.path), Some("{}")).await;
    assert_eq!((rotated.status, key_ids(&service).await.as_str()), (200, "b a"));
    let report = rewrite(&service, &[("b", 2), ("a", 1)]).await;
    assert_eq!((&report["rewritten"], key_ids(&service).await.as_str()), (&json!(1), "b b"));
    assert_eq!(rewrite(&service, &[("b", 2), ("a", 1)]).await["rewritten"], 0);
    let service = replace(&service, &[("b", 2)]).await;
    service.client().post(USAGE, &usage("a", "s", 1)).await;
    let received = receiver.reach(5).await.remove(4);
    // During the overlap both secrets sign.
    assert!(hook.verifier.verify(received.body.as_bytes(), &received.headers).is_ok());
    let second =
        standardwebhooks::Webhook::new(rotated.json()["secret"].as_str().expect("a secret")).expect("a secret");
    assert!(second.verify(received.body.as_bytes(), &received.headers).is_ok());
}

#[tokio::test]
async fn without_the_right_key_deliveries_wait_and_nothing_is_sent_unsigned() {
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    let service = start(&[("a", 1)]).await;
    let hook = Hook::make(&service.client(), &receiver, &["*"]).await;
    let key = service.client().post("/api/v1/api-keys", &json!({ "label": "l" })).await.json()["key"].clone();
    let mut service = service;
    for (wrong, pending, cause) in [
        (vec![], 1, "it is encrypted with the key a, which ENCRYPTION_KEYS does not have"),
        (vec![("a", 2)], 2, "the key a of ENCRYPTION_KEYS does not decrypt it"),
    ] {
        service = replace(&service, &wrong).await;
        let client = service.client();
        client.post(USAGE, &usage("a", "s", 1)).await;
        service.dispatcher.run_once().await.expect("dispatcher");
        assert_eq!(service.number(PENDING).await, pending, "{cause}");
        let test = client.send("POST", &format!("{}/test", hook.path), None).await;
        assert_eq!(
            test.error().2,
            format!("webhook {} did not accept the test delivery: signing secret unavailable", hook.id)
        );
        let deep = client.get("/api/v1/health/deep").await.json();
        let jobs = deep["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "jobs");
        assert!(jobs.expect("the jobs").to_string().contains(cause), "{jobs:?}");
        // The counter belongs to the process, so another test may reset it.
        let is_counted = async || {
            service.dispatcher.run_once().await.expect("dispatcher");
            service.metric(r#"agentpay_job_failures_total{job="webhook_secrets"}"#).await > 0
        };
        wait_until(is_counted).await;
        // The webhooks of others are not delayed, as far as their secrets can be decrypted.
        let others = client.with("x-api-key", key.as_str().expect("a key"));
        let made = others.post(WEBHOOKS, &json!({ "url": other.url, "events": ["*"] })).await.json();
        others.post(USAGE, &usage("a", "s", 1)).await;
        other.reach(1).await;
        let path = format!("{WEBHOOKS}/{}", made["id"].as_str().expect("an id"));
        assert_eq!(others.send("DELETE", &path, None).await.status, 204);
        assert_eq!(receiver.received().len(), 0);
    }
    let service = replace(&service, &[("a", 1)]).await;
    service.clock.advance_ms(2 * MINUTE_MS);
    service.dispatcher.run_once().await.expect("dispatcher");
    for received in receiver.reach(2).await {
        hook.verify(&received);
    }
    let failed = hook.deliveries(&service.client()).await;
    let failed: Vec<&Value> = failed.iter().filter(|delivery| delivery["status"] == "failed").collect();
    assert!(failed.iter().all(|delivery| delivery["type"] == "webhook.test"), "{failed:?}");
}

#[tokio::test]
async fn another_replica_soon_sends_what_one_cannot_decrypt() {
    let receiver = Receiver::start().await;
    let service = start(&[("a", 1)]).await;
    let hook = Hook::make(&service.client(), &receiver, &["*"]).await;
    let without_key = replace(&service, &[]).await;
    without_key.client().post(USAGE, &usage("a", "s", 1)).await;
    without_key.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(without_key.number("SELECT count(*) FROM webhook_queues WHERE leased_until IS NOT NULL").await, 1);
    let with_key = replace(&without_key, &[("a", 1)]).await;
    with_key.clock.advance_ms(15_000);
    with_key.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(with_key.number(PENDING).await, 0);
    hook.verify(&receiver.reach(1).await[0]);
}

#[tokio::test]
async fn after_plain_the_keys_decrypt_and_new_secrets_are_plain_text() {
    let receiver = Receiver::start().await;
    let service = start(&[("a", 1)]).await;
    let hook = Hook::make(&service.client(), &receiver, &["*"]).await;
    let service = replace(&service, &[PLAIN, ("a", 1)]).await;
    service.client().post(USAGE, &usage("a", "s", 1)).await;
    hook.verify(&receiver.reach(1).await[0]);
    let plain = "SELECT count(*) FROM webhooks WHERE secret_key_id IS NULL";
    assert_eq!(service.number(plain).await, 0);
    assert_eq!(service.client().send("POST", &format!("{}/rotate-secret", hook.path), Some("{}")).await.status, 200);
    assert_eq!(service.number(plain).await, 1);
}

#[tokio::test]
async fn a_secret_that_is_copied_to_another_webhook_signs_nothing() {
    let service = start(&[("a", 1)]).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = Hook::make(&client, &receiver, &["usage.settled"]).await;
    let copy = "WITH own AS (SELECT secret FROM webhooks)
        INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, secret_key_id, created_at, from_position)
        SELECT 'public', 'wh_' || repeat('0', 16), $1, '{*}', secret, 'a', now(), 0 FROM own";
    sqlx::query(copy).bind(&receiver.url).execute(&service.pool).await.expect("a copy");
    client.post(USAGE, &usage("a", "s", 1)).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    assert_eq!(service.number(PENDING).await, 1);
    assert_eq!((receiver.received().len(), hook.deliveries(&client).await.len()), (0, 0));
}
