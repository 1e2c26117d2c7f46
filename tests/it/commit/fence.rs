//! A cell executes and replays the writes of a tenant only while the tenant lives in it, whatever its lanes have cached.

use agentpay_billing::api::route::Auth;
use agentpay_billing::api::routes::ROUTES;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{Answer, Client, Service, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const MOVING: &str = "the tenant is being moved to another database; nothing was changed";

/// A service whose lane uses its cache, with a webhook. The id of the webhook.
async fn remembering() -> (Service, String) {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    let priced = json!({ "serviceId": "s", "priceStroops": 5, "description": "d", "owner": "o" });
    assert_eq!(client.post("/api/v1/services", &priced).await.status, 201);
    let webhook = json!({ "url": "https://example.com/hook", "events": ["usage.reset"] });
    let webhook = client.post("/api/v1/webhooks", &webhook).await.json()["id"].as_str().expect("an id").to_owned();
    for _ in 0..100 {
        assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    (service, webhook)
}

async fn set_residence(service: &Service, residence: &str) {
    let change = format!("UPDATE tenants SET residence = '{residence}', terms_revision = terms_revision + 1");
    sqlx::query(AssertSqlSafe(change)).execute(&service.pool).await.expect("a residence");
}

/// Everything that a write of a tenant can change.
async fn contents(service: &Service) -> String {
    let tables = ["usage_counters", "settlements", "event_runs", "idempotency_keys", "services", "webhooks", "totals"];
    let more = ["outbox", "webhook_deliveries", "webhook_queues", "caller_totals", "agents", "tenants", "audit_log"];
    // The dispatcher empties the outbox by itself.
    wait_until(async || service.number("SELECT count(*) FROM outbox").await == 0).await;
    let mut all = String::new();
    for table in tables.into_iter().chain(more) {
        let sql = format!("SELECT coalesce(string_agg(t::text, ',' ORDER BY t::text), '') FROM {table} AS t");
        all += &sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_one(&service.pool).await.expect(table);
    }
    all
}

fn assert_refused(answer: &Answer) {
    assert_eq!(answer.error(), (503, "tenant_moving".to_owned(), MOVING.to_owned()), "{answer:?}");
    assert_eq!(answer.header("retry-after"), "1");
}

/// A request that each writing route of a tenant executes.
fn body(pattern: &str, method: &str) -> Option<Value> {
    let pair = json!({ "agent": "a", "serviceId": "s" });
    Some(match (method, pattern.trim_start_matches("/api/v1/")) {
        ("DELETE", _) => return None,
        (_, "services/:serviceId/disable" | "services/:serviceId/enable" | "webhooks/:id/test") => return None,
        (_, "usage") => usage("a", "s", 1),
        (_, "usage/bulk") => json!({ "items": [usage("a", "s", 1)] }),
        (_, "settle") => pair,
        (_, "settle/bulk") => json!({ "agent": "a" }),
        (_, "services") => json!({ "serviceId": "t", "priceStroops": 1 }),
        (_, "services/bulk") => json!({ "items": [{ "serviceId": "t", "priceStroops": 1 }] }),
        (_, "services/:serviceId/metadata") => json!({ "description": "e", "owner": "p" }),
        (_, "services/:serviceId/price") => json!({ "priceStroops": 7 }),
        (_, "services/:serviceId/disabled") => json!({ "disabled": true }),
        (_, "webhooks") => json!({ "url": "https://example.com/hook", "events": ["*"] }),
        (_, "webhooks/:id") => json!({ "events": ["*"] }),
        (_, "webhooks/:id/rotate-secret") => json!({}),
        (_, "webhooks/:id/redeliver") => json!({ "failedSince": 0 }),
        other => panic!("a body for {other:?}"),
    })
}

async fn send(client: &Client, method: &str, pattern: &str, webhook: &str) -> Answer {
    let path = pattern.replace(":agent", "a").replace(":serviceId", "s").replace(":id", webhook);
    client.send(method, &path, body(pattern, method).map(|body| body.to_string()).as_deref()).await
}

#[tokio::test]
async fn every_write_of_a_tenant_is_refused_while_it_lives_elsewhere() {
    let (service, webhook) = remembering().await;
    let client = service.client();
    for residence in ["leaving", "elsewhere"] {
        set_residence(&service, residence).await;
        let before = contents(&service).await;
        for route in ROUTES.iter().filter(|route| route.auth == Auth::Tenant) {
            assert_refused(&send(&client, route.method, route.pattern, &webhook).await);
            assert_refused(&send(&client.key("k"), route.method, route.pattern, &webhook).await);
        }
        assert_eq!(contents(&service).await, before, "{residence}");
    }
    // The same requests are executed before the move and after its end.
    for residence in ["departing", "here"] {
        set_residence(&service, residence).await;
        assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_decided_before_the_tenant_leaves_is_rolled_back() {
    let (service, webhook) = remembering().await;
    for (method, pattern) in [
        ("POST", "/api/v1/usage"),
        ("POST", "/api/v1/settle"),
        ("DELETE", "/api/v1/usage/:agent/:serviceId"),
        ("PATCH", "/api/v1/services/:serviceId/price"),
    ] {
        set_residence(&service, "here").await;
        let warm = service.client().post(USAGE, &usage("a", "s", 1)).await;
        assert_eq!(warm.status, 201, "{warm:?}");
        let before = contents(&service).await;
        // The write is decided, and waits.
        let mut table = service.pool.begin().await.expect("begin");
        sqlx::query("LOCK TABLE usage_counters, services").execute(&mut *table).await.expect("a lock");
        let (client, webhook) = (service.client().key("decided"), webhook.clone());
        let write = tokio::spawn(async move { send(&client, method, pattern, &webhook).await });
        service.blocked(1).await;
        if pattern.starts_with("/api/v1/services") {
            // It holds the tenant's row, so the move waits for it.
            table.rollback().await.expect("rollback");
            assert_eq!(write.await.expect("a task").status, 200);
            continue;
        }
        set_residence(&service, "leaving").await;
        table.rollback().await.expect("rollback");
        assert_refused(&write.await.expect("a task"));
        set_residence(&service, "here").await;
        let renewed = "UPDATE tenants SET terms_revision = terms_revision - 2 WHERE tenant_id = 'public'";
        sqlx::query(renewed).execute(&service.pool).await.expect("the revision of before");
        assert_eq!(contents(&service).await, before, "{pattern}");
    }
    service.verify().await;
}

#[tokio::test]
async fn a_stored_response_is_replayed_only_where_the_tenant_lives() {
    let (service, _) = remembering().await;
    let keyed = service.client().key("stored");
    let first = keyed.post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(first.status, 201);
    for residence in ["leaving", "elsewhere"] {
        // The lane has cached that the tenant lives here.
        assert!(keyed.post(USAGE, &usage("a", "s", 1)).await.same(&first));
        service.client().post(USAGE, &usage("a", "s", 1)).await;
        set_residence(&service, residence).await;
        assert_refused(&keyed.post(USAGE, &usage("a", "s", 1)).await);
        // Nor is it said that the key was used for another request.
        assert_refused(&keyed.post(USAGE, &usage("a", "s", 2)).await);
        set_residence(&service, "here").await;
    }
    let again = keyed.post(USAGE, &usage("a", "s", 1)).await;
    assert!(again.replayed && again.same(&first), "{again:?}");
    service.verify().await;
}
