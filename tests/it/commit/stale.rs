//! Stale data that a commit must not use: prices and flags from before a reset, and that a tenant has no webhooks.

use serde_json::json;

use crate::support::{Service, usage};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reset_of_everything_no_old_price_is_billed() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("ALLOW_ADMIN_RESET", "on")]).await;
    let client = service.client();
    let priced = client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    assert_eq!(priced.status, 201);
    // Until the lane uses its cache.
    for _ in 0..100 {
        assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }
    let pair = json!({ "agent": "a", "serviceId": "s" });
    assert_eq!(client.post("/api/v1/settle", &pair).await.json()["billedStroops"], 500);
    assert_eq!(client.post("/api/v1/admin/reset", &json!({})).await.status, 200);
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 3)).await.json()["total"], 3);
    let bill = client.post("/api/v1/settle", &pair).await;
    assert_eq!(
        (bill.json()["priceStroops"].clone(), bill.json()["billedStroops"].clone()),
        (json!(0), json!(0)),
        "{bill:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reset_of_everything_no_old_flag_refuses_usage() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("ALLOW_ADMIN_RESET", "on")]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    client.post("/api/v1/services", &json!({ "serviceId": "t", "priceStroops": 5 })).await;
    client.send("POST", "/api/v1/services/s/disable", None).await;
    for _ in 0..100 {
        assert_eq!(client.post("/api/v1/usage", &usage("a", "t", 1)).await.status, 201);
    }
    let refused = client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    assert_ne!(refused.status, 201, "{refused:?}");
    assert_eq!(client.post("/api/v1/admin/reset", &json!({})).await.status, 200);
    let answer = client.key("k").post("/api/v1/usage", &usage("a", "s", 3)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_after_the_first_webhook_of_its_tenant_is_queued_for_it() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    // What another replica does when it creates a webhook.
    let mut other = service.pool.begin().await.expect("begin");
    sqlx::raw_sql("SELECT FROM tenants WHERE tenant_id = 'public' FOR NO KEY UPDATE;
        INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, created_at, from_position)
        VALUES ('public', 'wh_0123456789abcdef', 'http://127.0.0.1:9/', '{*}', decode(repeat('00', 32), 'hex'), now(), nextval('event_positions'));
        UPDATE tenants SET terms_revision = 77 WHERE tenant_id = 'public'")
        .execute(&mut *other).await.expect("a webhook");
    let delete = tokio::spawn(async move { client.send("DELETE", "/api/v1/services/s", None).await });
    service.blocked(1).await;
    other.commit().await.expect("commit");
    assert_eq!(delete.await.expect("delete").status, 204);
    assert!(service.number("SELECT max(position) - (SELECT from_position FROM webhooks) FROM event_runs").await > 0);
    assert_eq!(
        service.number("SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM webhook_deliveries)").await,
        1
    );
}
