//! HTTP contract, section 14: the janitor cuts event logs to their length.

use serde_json::json;

use super::{CAP_OF_CALLER, CAPS, EXPIRED_MS, OLD_MS, fill};
use crate::support::{Service, needs_one_cell, store_records, usage};

#[tokio::test]
async fn a_log_keeps_its_newest_events() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 5).await;
    sqlx::query("UPDATE runtime_config SET event_log_cap = 2").execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
    assert_eq!(service.janitor.run_once().await.expect("janitor").events, 3);
    assert_eq!(service.number("SELECT min((payload->>'total')::bigint) FROM events").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_far_beyond_their_length_are_cut_step_by_step() {
    if needs_one_cell("a janitor cuts the logs of one cell") {
        return;
    }
    let service = Service::start(CAPS).await;
    let public = service.client();
    let made = public.post("/api/v1/api-keys", &json!({ "label": "other" })).await.json();
    let other = public.with("x-api-key", made["key"].as_str().expect("a key"));
    let items = json!({ "items": vec![usage("a", "s", 1); 100] });
    // More than one step deletes, and the same of the next tenant.
    for client in [&public, &other] {
        for _ in 0..11 {
            assert_eq!(client.post("/api/v1/usage/bulk", &items).await.status, 201);
        }
    }
    sqlx::query("UPDATE runtime_config SET event_log_cap = 2").execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
    // Runs are deleted whole: of the newest all hundred events stay.
    assert_eq!(service.janitor.run_once().await.expect("janitor").events, 2 * 1000);
    let newest: Vec<i64> = sqlx::query_scalar("SELECT min((payload->>'total')::bigint) FROM events GROUP BY tenant_id")
        .fetch_all(&service.pool)
        .await
        .expect("events");
    assert_eq!(newest, [1001, 1001]);
    assert_eq!(public.get("/api/v1/events").await.json()["total"], 2);
    service.verify().await;
}

/// However much has expired, logs beyond their length do not wait for all of it; the caps do.
#[tokio::test]
async fn expired_records_do_not_delay_the_event_log() {
    const EXPIRED: i64 = 101_500;
    let service = Service::start(CAP_OF_CALLER).await;
    fill(&service, "192.0.2.2", 0, 7).await;
    service.age_records(OLD_MS).await;
    store_records(&service.pool, "ip:192.0.2.1", EXPIRED, EXPIRED_MS, 100).await;
    sqlx::raw_sql(
        "UPDATE runtime_config SET event_log_cap = 4;
         CREATE TABLE left_expired (of text, records bigint);
         CREATE FUNCTION count_expired() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO left_expired SELECT tg_table_name, count(*) FROM idempotency_keys WHERE caller = 'ip:192.0.2.1';
             RETURN NULL;
         END $$;
         CREATE TRIGGER deleted AFTER DELETE ON event_runs FOR EACH ROW EXECUTE FUNCTION count_expired();
         CREATE TRIGGER deleted AFTER DELETE ON idempotency_keys
         FOR EACH ROW WHEN (old.caller = 'ip:192.0.2.2') EXECUTE FUNCTION count_expired();",
    )
    .execute(&service.pool)
    .await
    .expect("records");
    service.config_watcher.run_once().await.expect("limits");
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap, report.events), (EXPIRED, 2, 3));
    let left: Vec<(String, i64)> =
        sqlx::query_as("SELECT of, records FROM left_expired").fetch_all(&service.pool).await.expect("rows");
    let expected = [("event_runs", 1500); 3].into_iter().chain([("idempotency_keys", 0); 2]);
    assert_eq!(left, expected.map(|(of, records)| (of.to_owned(), records)).collect::<Vec<_>>());
    service.verify().await;
}
