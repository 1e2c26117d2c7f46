//! HTTP contract, section 7, and that a pause, a limit and a revocation reach every replica within a second.

use agentpay_billing::clock::Clock;
use agentpay_billing::domain::runtime_config::RuntimeConfig;
use agentpay_billing::job_health::JobHealth;
use agentpay_billing::jobs::watch_runtime_config::RuntimeConfigWatcher;
use agentpay_billing::runtime_config::SharedRuntimeConfig;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Client, LIMIT, Process, Service, new_database, pool, usage, wait_until};

const PAUSED: &str = "AgentPay backend is paused; only admin/unpause and reads are accepted";

async fn is_paused(client: &Client) -> bool {
    client.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 503
}

#[tokio::test]
async fn a_pause_is_repeatable_seen_and_lifted() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (path, text) in [
        ("pause", r#"{"paused":true}"#),
        ("pause", r#"{"paused":true}"#),
        ("unpause", r#"{"paused":false}"#),
        ("unpause", r#"{"paused":false}"#),
    ] {
        let answer = client.send("POST", &format!("/api/v1/admin/{path}?x=1"), None).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, text));
        assert_eq!(client.get("/api/v1/admin/status?x=1").await.text, text);
        assert_eq!(is_paused(&client).await, path == "pause");
    }
}

#[tokio::test]
async fn a_paused_service_refuses_the_marked_routes_and_no_others() {
    let service = Service::start(&[("RATE_LIMIT", "on")]).await;
    let client = service.client();
    client.send("POST", "/api/v1/admin/pause", None).await;
    for (method, path) in [
        ("POST", "/api/v1/usage"),
        ("POST", "/api/v1/usage/bulk"),
        ("POST", "/api/v1/settle"),
        ("POST", "/api/v1/settle/bulk/"),
        ("POST", "/api/v1/services"),
        ("POST", "/api/v1/services/s/disable"),
        ("POST", "/api/v1/services/s/enable"),
        ("POST", "/api/v1/api-keys"),
        ("DELETE", "/api/v1/api-keys/apk_1"),
    ] {
        // Before body, type and limiter.
        let answer = client.with("content-type", "text/plain").send(method, path, Some("{")).await;
        assert_eq!(answer.error(), (503, "service_paused".to_owned(), PAUSED.to_owned()), "{method} {path}");
        assert_eq!((answer.header("retry-after"), answer.header("ratelimit-limit")), (String::new(), String::new()));
    }
    for (method, path, status) in [
        ("GET", "/api/v1/services", 200),
        ("HEAD", "/api/v1/services", 200),
        ("OPTIONS", "/api/v1/usage", 204),
        ("PATCH", "/api/v1/config", 200),
        ("PUT", "/api/v1/usage", 405),
        ("POST", "/api/v1/nothing", 404),
        ("GET", "/api/v1/health/ready", 200),
        ("POST", "/api/v1/admin/pause", 200),
    ] {
        assert_eq!(client.send(method, path, None).await.status, status, "{method} {path}");
    }
    assert_eq!(client.get("/api/v1/health/deep").await.json()["status"], "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_reach_the_other_process_within_a_second() {
    let database = new_database().await;
    let keys = [("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")];
    let (one, two) = (Process::start_on(&database, &keys), Process::start_on(&database, &keys));
    let (operator, other) = (one.client().with("x-api-key", "admin"), two.client());
    let created = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let key = created["key"].as_str().expect("a key").to_owned();
    let (here, there) = (one.client().with("x-api-key", &key), other.with("x-api-key", &key));
    for client in [&here, &there] {
        assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }

    operator.send("POST", "/api/v1/admin/pause", None).await;
    assert!(is_paused(&here).await);
    wait_until(async || is_paused(&there).await).await;
    operator.send("POST", "/api/v1/admin/unpause", None).await;
    assert!(!is_paused(&here).await);
    wait_until(async || !is_paused(&there).await).await;

    let changed = operator.send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":1}"#)).await;
    assert_eq!(changed.status, 200);
    let bulk = json!({ "items": [usage("a", "s", 1), usage("a", "s", 1)] });
    assert_eq!(here.post("/api/v1/usage/bulk", &bulk).await.status, 400);
    wait_until(async || there.post("/api/v1/usage/bulk", &bulk).await.status == 400).await;

    let revoked = operator.send("DELETE", &format!("/api/v1/api-keys/{}", &key[..12]), None).await;
    assert_eq!(revoked.status, 204);
    assert_eq!(here.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 401);
    wait_until(async || there.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 401).await;
}

/// As behind a pooler in transaction mode: the poll and the age of cached keys alone keep the promise.
#[tokio::test(flavor = "multi_thread")]
async fn changes_without_a_notification_hold_within_a_second_too() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]).await;
    let operator = service.client().with("x-api-key", "admin");
    let created = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let client = service.client().with("x-api-key", created["key"].as_str().expect("a key"));
    assert!(!is_paused(&client).await);
    let change = async |sql: &'static str| sqlx::query(sql).execute(&service.pool).await.expect(sql);
    change("UPDATE runtime_config SET paused = true, revision = revision + 1").await;
    wait_until(async || is_paused(&client).await).await;
    change("UPDATE runtime_config SET paused = false, revision = revision + 1").await;
    wait_until(async || !is_paused(&client).await).await;
    change("DELETE FROM api_keys").await;
    wait_until(async || client.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 401).await;
}

#[tokio::test]
async fn a_notification_is_heard_before_the_next_poll() {
    let database = new_database().await;
    let config = SharedRuntimeConfig::new(RuntimeConfig::default());
    let clock = Clock::default();
    let mut watcher = RuntimeConfigWatcher::new(database.clone(), config.clone(), JobHealth::new(clock.clone()), clock);
    // It reads when it begins, when it listens, and when it hears something.
    watcher.poll_interval = LIMIT * 10;
    let stop = CancellationToken::new();
    let watching = tokio::spawn(watcher.run(stop.clone()));
    let pool = pool(&database);
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let listens = async || sqlx::query_scalar::<_, i64>(listening).fetch_one(&pool).await.expect("count") == 1;
    wait_until(listens).await;
    for paused in [true, false, true] {
        let change = "WITH told AS (SELECT pg_notify('agentpay_runtime_config', '')) UPDATE runtime_config SET paused = $1 FROM told";
        sqlx::query(change).bind(paused).execute(&pool).await.expect("change");
        wait_until(async || config.is_paused() == paused).await;
    }
    stop.cancel();
    watching.await.expect("it ends");
}
