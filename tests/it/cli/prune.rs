//! `prune` and `prune --dry-run`.

use serde_json::json;

use crate::support::{Service, store_records, usage};

use super::{as_json, command_with, printed};

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_deletes_nothing_and_names_what_a_run_deletes() {
    let settings = [("JANITOR_INTERVAL_MS", "3600000"), ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "5")];
    let service = Service::start(&settings).await;
    // The dispatcher deletes deliveries, too.
    let _turn = service.dispatcher.turn.lock().await;
    // Expired; over the cap and old enough to go; over the cap and too young.
    for (caller, records, age_ms) in
        [("ip:192.0.2.1", 1500, 90_000_000), ("ip:192.0.2.2", 8, 7_200_000), ("ip:192.0.2.3", 9, 0)]
    {
        store_records(&service.pool, caller, records, age_ms, 10).await;
    }
    service.client().send("PATCH", "/api/v1/config", Some(r#"{"eventLogCap":2}"#)).await;
    for _ in 0..5 {
        service.client().post("/api/v1/usage", &usage("a", "s", 1)).await;
    }
    let delivery = "INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, status, finished_at)
        SELECT 'public', 'wh_0123456789abcdef', n, 'dlv_' || md5(n::text), now(), 'usage.recorded', '{}', 'delivered',
               now() - n * interval '6 days'
        FROM generate_series(0, 3) AS n";
    sqlx::query(delivery).execute(&service.pool).await.expect("deliveries");
    let rows = "SELECT (SELECT count(*) FROM idempotency_keys) * 10000
                    + (SELECT sum(events)::bigint FROM event_runs) * 100 + (SELECT count(*) FROM webhook_deliveries)";
    assert_eq!(service.number(rows).await, 15_170_504);

    let caps = [("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "5")];
    let run = async |arguments: &[&str]| {
        let (code, stdout, stderr) = command_with(&service, arguments, &caps).await;
        assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
        serde_json::from_str::<serde_json::Value>(&stdout).expect("JSON")
    };
    let planned = json!({ "expiredRecords": 1500, "evictedRecords": 3, "events": 3, "deliveries": 2 });
    let mut dry = run(&["prune", "--dry-run", "--format", "json"]).await;
    assert_eq!(dry.as_object_mut().expect("an object").remove("dryRun"), Some(json!(true)));
    assert_eq!(dry, planned);
    assert_eq!(service.number(rows).await, 15_170_504);
    let mut done = run(&["prune", "--format", "json"]).await;
    assert_eq!(done.as_object_mut().expect("an object").remove("dryRun"), Some(json!(false)));
    assert_eq!(done, planned);
    assert_eq!(service.number(rows).await, 140_202);
    let table = printed(&service, &["prune"]).await;
    assert!(table.lines().all(|line| line.ends_with("  0")), "{table}");
    assert_eq!(as_json(&service, &["prune", "--dry-run"]).await["expiredRecords"], 0);
    service.verify().await;
}
