//! HTTP contract, section 15.2: reset.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agentpay_billing::store::reset;
use serde_json::json;

use crate::support::{Service, new_database, usage, wait_until};

const RESET: &str = "/api/v1/admin/reset";
const ON: &[(&str, &str)] = &[("ALLOW_ADMIN_RESET", "on"), ("ADMIN_API_KEY", "admin"), ("RATE_LIMIT", "on")];
const DEFAULTS: &str = r#"{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,"usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000}"#;

#[tokio::test]
async fn a_reset_that_is_not_allowed_changes_nothing() {
    let service = Service::start(&[("ALLOW_ADMIN_RESET", "maybe")]).await;
    let client = service.client();
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    let error = client.send("POST", RESET, None).await.error();
    assert_eq!(error, (404, "not_found".to_owned(), "admin reset is disabled".to_owned()));
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 1);
    let error = client.with("x-api-key", "guess").send("POST", RESET, None).await.error();
    assert_eq!(error.0, 401);
}

#[tokio::test]
async fn a_reset_clears_everything_and_tells_what_there_was() {
    let service = Service::start(ON).await;
    let operator = service.client().with("x-api-key", "admin");
    let created = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let tenant = service.client().with("x-api-key", created["key"].as_str().expect("a key"));
    for client in [&operator, &tenant] {
        client.key("k").post("/api/v1/usage", &usage("a", "s", 1)).await;
    }
    let plain = json!({ "serviceId": "plain", "priceStroops": 1 });
    let known = json!({ "serviceId": "s", "priceStroops": 1, "description": "", "owner": "o" });
    for body in [plain, known] {
        assert_eq!(tenant.post("/api/v1/services", &body).await.status, 201);
    }
    tenant.send("POST", "/api/v1/services/plain/disable", None).await;
    tenant.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    operator.send("PATCH", "/api/v1/config", Some(r#"{"eventLogCap":2,"rateLimitPerWindow":59}"#)).await;
    operator.send("POST", "/api/v1/admin/pause", None).await;

    let answer = operator.send("POST", RESET, None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let event = answer.json()["auditEvent"].clone();
    let (id, ts) = (event["id"].as_str().expect("an id"), event["ts"].as_i64().expect("a moment"));
    assert!(uuid::Uuid::parse_str(id).is_ok());
    let before = DEFAULTS.replace("LogCap\":10000", "LogCap\":2").replace("PerWindow\":60,", "PerWindow\":59,");
    // Of the tenant's three events two are visible, and the one of public.
    let cleared = format!(
        r#"{{"usage":2,"services":2,"servicesMetadata":1,"servicesDisabled":1,"apiKeys":1,"webhooks":0,"eventLog":3,"rateBuckets":2,"paused":true,"config":{before}}}"#
    );
    let text = format!(
        r#"{{"reset":true,"cleared":{cleared},"paused":false,"config":{DEFAULTS},"auditEvent":{{"id":"{id}","ts":{ts},"type":"admin.reset","payload":{{"cleared":{cleared}}}}}}}"#
    );
    assert_eq!(answer.text, text);

    // Nothing is left, and all of it holds at once.
    assert_eq!(service.number("SELECT count(*) FROM tenants").await, 1);
    for table in reset::tables() {
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&service.pool)
            .await
            .expect("rows");
        assert_eq!(rows, 0, "{table}");
    }
    let fresh = service.client().get("/api/v1/usage/a/s").await;
    assert_eq!((fresh.header("ratelimit-limit").as_str(), fresh.header("ratelimit-remaining").as_str()), ("60", "59"));
    assert_eq!(
        tenant.post("/api/v1/usage", &usage("a", "s", 1)).await.text,
        r#"{"agent":"a","serviceId":"s","total":1}"#
    );
    assert_eq!(service.number("SELECT count(*) FROM usage_counters WHERE tenant_id = 'public'").await, 1);
    service.verify().await;

    let again = operator.send("POST", RESET, None).await.json();
    assert_eq!((again["cleared"]["usage"].as_i64(), again["cleared"]["eventLog"].as_i64()), (Some(1), Some(1)));
}

#[tokio::test]
async fn every_table_is_in_the_list() {
    let service = Service::start(&[]).await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'",
    )
    .fetch_all(&service.pool)
    .await
    .expect("tables");
    let listed: BTreeSet<String> = reset::tables()
        .chain(["audit_log", "cell_identity", "cells", "citus_positions", "runtime_config", "tenants", "verification"])
        .map(str::to_owned)
        .collect();
    assert_eq!(tables.into_iter().collect::<BTreeSet<_>>(), listed);
}

/// Two services under load, with a janitor that never rests: no reset fails, no write is lost half.
#[tokio::test(flavor = "multi_thread")]
async fn resets_under_load_cause_no_deadlock() {
    let database = new_database().await;
    let environment = [("ALLOW_ADMIN_RESET", "1"), ("JANITOR_INTERVAL_MS", "10"), ("IDEMPOTENCY_CACHE_TTL_MS", "1000")];
    let services =
        [Service::start_on(database.clone(), &environment).await, Service::start_on(database, &environment).await];
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for number in 0..16_usize {
        let (client, stop, done) = (services[number % 2].client(), stop.clone(), done.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0.. {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let client = client.key(&format!("{number}-{round}"));
                let (agent, pair) = (format!("a{}", round % 3), json!({ "agent": format!("a{}", round % 3) }));
                let answer = match round % 4 {
                    0 => client.post("/api/v1/settle/bulk", &pair).await,
                    1 => client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await,
                    _ => client.post("/api/v1/usage", &usage(&agent, "s", 1)).await,
                };
                assert!(matches!(answer.status, 200 | 201), "{answer:?}");
                done.fetch_add(1, Ordering::AcqRel);
            }
        }));
    }
    for round in 0..10_usize {
        let goal = done.load(Ordering::Acquire) + 50;
        let is_reached = async || {
            assert!(!tasks.iter().any(tokio::task::JoinHandle::is_finished), "a writer failed");
            done.load(Ordering::Acquire) >= goal
        };
        wait_until(is_reached).await;
        // Both at once, every other time.
        let (one, two) = (services[0].client(), services[1].client());
        let (first, second) = tokio::join!(one.send("POST", RESET, None), async {
            if round % 2 == 0 { Some(two.send("POST", RESET, None).await) } else { None }
        });
        assert_eq!(first.status, 200, "{first:?}");
        assert!(second.is_none_or(|second| second.status == 200));
    }
    stop.store(true, Ordering::Release);
    for task in tasks {
        task.await.expect("a writer");
    }
    services[0].verify().await;
}
