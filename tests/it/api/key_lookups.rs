//! What presented API keys cost: made-up ones cost no query once their address has no quota left, and those that arrive
//! together share one. While the table of keys is locked, a request that looks one up does not get an answer.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{Postgres, Transaction};

use crate::support::{Answer, Client, Service};

const SERVICES: &str = "/api/v1/services";
const LIMITED: &[(&str, &str)] = &[("RATE_LIMIT", "on"), ("TRUST_PROXY", "1"), ("ADMIN_API_KEY", "admin")];

async fn lock_keys(service: &Service) -> Transaction<'static, Postgres> {
    let mut transaction = service.pool.begin().await.expect("begin");
    sqlx::query("LOCK TABLE api_keys").execute(&mut *transaction).await.expect("a lock");
    transaction
}

/// A client with a made-up key that was not sent before.
fn with_made_up_key(client: &Client, number: usize) -> Client {
    client.with("x-api-key", &format!("apk_{number:032x}"))
}

fn is_rate_limited(answer: &Answer) -> bool {
    answer.status == 429 && answer.error().1 == "rate_limited" && answer.header("ratelimit-remaining") == "0"
}

#[tokio::test]
async fn made_up_keys_cost_no_query_once_their_address_has_no_quota() {
    for require in ["true", "false"] {
        let service = Service::start(&[LIMITED, &[("REQUIRE_API_KEY", require)]].concat()).await;
        let flood = service.client().with("x-forwarded-for", "192.0.2.1");
        for number in 0..60 {
            assert_eq!(with_made_up_key(&flood, number).get(SERVICES).await.status, 200);
        }
        // A few more, because a caller with a key may share the address.
        for number in 60..70 {
            assert!(is_rate_limited(&with_made_up_key(&flood, number).get(SERVICES).await));
        }
        let keys = lock_keys(&service).await;
        for number in 70..170 {
            for (method, path) in [("GET", SERVICES), ("POST", "/api/v1/usage"), ("GET", "/nothing")] {
                let answer = with_made_up_key(&flood, number).send(method, path, None).await;
                assert!(is_rate_limited(&answer), "{method} {path}: {answer:?}");
            }
        }
        keys.rollback().await.expect("rollback");
        // The pause still comes before the limiter, for those who may write at all.
        let operator = service.client().with("x-api-key", "admin");
        operator.send("POST", "/api/v1/admin/pause", None).await;
        let paused = with_made_up_key(&flood, 999).send("POST", "/api/v1/usage", None).await;
        assert_eq!(paused.status, if require == "true" { 429 } else { 503 }, "{paused:?}");
        service.clock.advance_ms(60_000);
        assert_eq!(with_made_up_key(&flood, 1000).get(SERVICES).await.status, 200);
    }
}

#[tokio::test]
async fn a_tenant_at_a_flooded_address_keeps_its_own_quota() {
    let service = Service::start(LIMITED).await;
    let operator = service.client().with("x-api-key", "admin");
    let mut tenants = Vec::new();
    let flood = service.client().with("x-forwarded-for", "192.0.2.1");
    for _ in 0..2 {
        let made = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
        tenants.push(flood.with("x-api-key", made["key"].as_str().expect("a key")));
    }
    assert_eq!(tenants[0].get(SERVICES).await.header("ratelimit-remaining"), "59");
    for _ in 0..61 {
        flood.get(SERVICES).await;
    }
    // One whose key was never seen here is looked up, even now.
    assert_eq!(tenants[1].get(SERVICES).await.header("ratelimit-remaining"), "59");
    for number in 0..30 {
        assert!(is_rate_limited(&with_made_up_key(&flood, number).get(SERVICES).await));
    }
    // Those that were recognised once are looked up whenever they have to be.
    operator.post("/api/v1/api-keys", &json!({ "label": "makes all others stale" })).await;
    for tenant in &tenants {
        assert_eq!(tenant.get(SERVICES).await.header("ratelimit-remaining"), "58");
    }
}

#[tokio::test]
async fn what_needs_no_tenant_looks_no_key_up() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let _keys = lock_keys(&service).await;
    let client = with_made_up_key(&service.client(), 1);
    for (method, path, status) in [
        ("GET", "/api/v1/config", 200),
        ("GET", "/api/v1/admin/status", 200),
        ("GET", "/health", 200),
        ("GET", "/api/v1/health/ready", 200),
        ("POST", "/api/v1/admin/pause", 401),
        ("PATCH", "/api/v1/config", 401),
        ("GET", "/api/v1/api-keys", 401),
        ("DELETE", "/api/v1/api-keys/none", 401),
    ] {
        assert_eq!(client.send(method, path, None).await.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn configuration_and_status_cost_no_query() {
    let service = Service::start(&[("DATABASE_POOL_MAX", "2")]).await;
    let client = service.client();
    assert_eq!(client.send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":7}"#)).await.status, 200);
    let mut transaction = service.pool.begin().await.expect("begin");
    sqlx::query("LOCK TABLE runtime_config").execute(&mut *transaction).await.expect("a lock");
    for _ in 0..50 {
        assert_eq!(client.get("/api/v1/config").await.json()["config"]["bulkMaxItems"], 7);
        assert_eq!(client.get("/api/v1/admin/status").await.text, r#"{"paused":false}"#);
    }
}

#[tokio::test]
async fn keys_that_arrive_together_share_a_query() {
    let service = Service::start(&[("DATABASE_POOL_MAX", "8")]).await;
    let keys = lock_keys(&service).await;
    let began = Instant::now();
    let requests: Vec<_> = (0..200)
        .map(|number| {
            let client = with_made_up_key(&service.client(), number % 100);
            tokio::spawn(async move { client.get("/api/v1/version").await })
        })
        .collect();
    service.blocked(1).await;
    // The janitor may wait for the table, too.
    let lookups = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- api_keys::find_all%'";
    for _ in 0..100 {
        assert!(service.number(lookups).await <= 1);
    }
    // Other callers are served.
    assert_eq!(service.client().get(SERVICES).await.status, 200);
    keys.rollback().await.expect("rollback");
    // A read waits two seconds for a lock, which a busy machine may need to come here.
    let is_late = began.elapsed() > Duration::from_millis(1900);
    for request in requests {
        let status = request.await.expect("a client").status;
        assert!(status == 200 || (status == 503 && is_late), "{status}");
    }
}
