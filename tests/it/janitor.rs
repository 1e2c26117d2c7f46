//! Contract section 7.3, caps: expired records first, then the oldest, each cap for itself.

use std::time::Duration;

use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::store::retention::OldestExpiry;
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;

use crate::support::{Service, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const CAPS: &[(&str, &str)] = &[
    ("TRUST_PROXY", "1"),
    ("JANITOR_INTERVAL_MS", "3600000"),
    ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "8"),
    ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "5"),
    ("IDEMPOTENCY_CACHE_TTL_MS", "10000"),
];

const CAP_OF_CALLER: &[(&str, &str)] =
    &[("TRUST_PROXY", "1"), ("JANITOR_INTERVAL_MS", "3600000"), ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "5")];

/// `count` keyed requests of one caller, a millisecond apart.
async fn fill(service: &Service, address: &str, first: usize, count: usize) {
    let client = service.client().with("x-forwarded-for", address);
    for number in first..first + count {
        service.clock.advance_ms(1);
        let answer = client.key(&format!("k{number}")).post(USAGE, &usage("a", "s", 1)).await;
        assert_eq!((answer.status, answer.replayed), (201, false));
    }
}

#[tokio::test]
async fn a_caller_over_its_cap_loses_its_own_oldest_records_only() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 2).await;
    fill(&service, "192.0.2.2", 0, 7).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.over_caller_cap, report.live_over_caller_cap, report.over_total_cap), (2, 2, 0));
    let left: Vec<(String, String)> = sqlx::query_as("SELECT caller, key FROM idempotency_keys ORDER BY caller, key")
        .fetch_all(&service.pool)
        .await
        .expect("rows");
    let left: Vec<String> = left.into_iter().map(|(caller, key)| format!("{caller} {key}")).collect();
    let of = |address: &'static str, keys: std::ops::Range<usize>| keys.map(move |key| format!("ip:{address} k{key}"));
    assert_eq!(left, of("192.0.2.1", 0..2).chain(of("192.0.2.2", 2..7)).collect::<Vec<_>>());
}

#[tokio::test]
async fn over_the_total_cap_the_oldest_of_all_go_but_the_expired_first() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 3).await;
    service.age_records(10_000).await;
    for caller in ["192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        fill(&service, caller, 0, 4).await;
    }
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_total_cap, report.live_over_total_cap), (3, 4, 4));
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys WHERE caller = 'ip:192.0.2.2'").await, 0);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 8);
    // The maintained counts say the same, and nothing is left to do.
    let counted = "SELECT sum(records)::bigint FROM caller_totals";
    assert_eq!(service.number(counted).await, 8);
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap, report.over_total_cap), (0, 0, 0));
}

#[tokio::test]
async fn a_log_keeps_its_newest_events() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 5).await;
    sqlx::query("UPDATE runtime_config SET event_log_cap = 2").execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
    assert_eq!(service.janitor.run_once().await.expect("janitor").events, 3);
    assert_eq!(service.number("SELECT min((payload->>'total')::bigint) FROM events").await, 4);
}

#[tokio::test]
async fn a_second_janitor_leaves_the_work_to_the_first() {
    let service = Service::start(CAPS).await;
    let mut other = service.pool.begin().await.expect("transaction");
    assert!(agentpay_billing::store::server::try_janitor_lock(&mut other).await.expect("lock"));
    assert!(!service.janitor.run_once().await.expect("janitor").was_alone);
    other.rollback().await.expect("rollback");
    assert!(service.janitor.run_once().await.expect("janitor").was_alone);
}

#[tokio::test]
async fn a_record_that_a_writer_holds_is_left_alone() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 2).await;
    service.age_records(20_000).await;
    let mut writer = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT 1 FROM idempotency_keys WHERE key = 'k0' FOR UPDATE")
        .execute(&mut *writer)
        .await
        .expect("lock");
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 1);
    writer.rollback().await.expect("rollback");
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_janitor_gets_its_turn_between_two_steps() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 1).await;
    service.age_records(10_000).await;
    fill(&service, "192.0.2.2", 0, 7).await;
    // The janitor is at its first step, and a reset waits for it to end.
    let mut table = service.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE idempotency_keys").execute(&mut *table).await.expect("lock");
    let janitor = service.janitor.clone();
    let run = tokio::spawn(async move { janitor.run_once().await.expect("janitor") });
    service.blocked(1).await;
    let mut reset = service.pool.begin().await.expect("transaction");
    let wait = tokio::spawn(async move {
        agentpay_billing::store::server::lock_out_janitors(&mut reset).await.expect("lock");
        reset
    });
    service.blocked(2).await;
    table.rollback().await.expect("rollback");
    let reset = wait.await.expect("a task");
    let report = run.await.expect("a task");
    assert_eq!((report.was_alone, report.expired, report.over_caller_cap), (true, 1, 0));
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 7);
    // What is left waits for the next run.
    reset.rollback().await.expect("rollback");
    assert_eq!(service.janitor.run_once().await.expect("janitor").over_caller_cap, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_far_beyond_their_length_are_cut_step_by_step() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_cuts_a_run_of_the_janitor_short() {
    let service = Service::start(CAPS).await;
    let records = "SELECT count(*) FROM idempotency_keys";
    let mut janitor = service.janitor.clone();
    janitor.settings.pause = Duration::from_millis(10);
    let stop = CancellationToken::new();
    let running = tokio::spawn(janitor.run(stop.clone()));
    // Left to itself it prunes.
    fill(&service, "192.0.2.1", 0, 7).await;
    wait_until(async || service.number(records).await == 5).await;
    let mut table = service.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE idempotency_keys").execute(&mut *table).await.expect("lock");
    service.blocked(1).await;
    assert!(!running.is_finished());
    stop.cancel();
    // It ends, although nobody has unlocked the table.
    wait_until(async || running.is_finished()).await;
    table.rollback().await.expect("rollback");
    // What it was at is undone, and done the next time: once PostgreSQL has noticed that nobody waits for it any more.
    service.age_records(20_000).await;
    let prunes = async || service.janitor.run_once().await.expect("janitor").expired == 5;
    wait_until(prunes).await;
}

#[tokio::test]
async fn the_oldest_expired_record_is_looked_for_once_a_second() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 2).await;
    service.age_records(20_000).await;
    let first = "SELECT (extract(epoch FROM min(expires_at)) * 1000)::bigint FROM idempotency_keys";
    let first = Timestamp::from_ms(service.number(first).await);
    let mut connection = service.pool.acquire().await.expect("connection");
    let oldest = OldestExpiry::default();
    let mut read = async |now| oldest.read(&mut connection, now).await.expect("a read");
    assert_eq!(read(first.plus_ms(-1)).await, None);
    let now = service.clock.now();
    assert_eq!(read(now).await, Some(first));
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 2);
    // Not looked for again until a second has passed, and at once by a clock that was set back.
    assert_eq!(read(now.plus_ms(999)).await, Some(first));
    assert_eq!(read(now.plus_ms(-1)).await, None);
    assert_eq!(read(now.plus_ms(1000)).await, None);
}

/// However much has expired, logs beyond their length do not wait for all of it; the caps do.
#[tokio::test]
async fn what_expired_does_not_hold_up_the_log() {
    const EXPIRED: i64 = 101_500;
    let service = Service::start(CAP_OF_CALLER).await;
    fill(&service, "192.0.2.2", 0, 7).await;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "UPDATE runtime_config SET event_log_cap = 4;
         INSERT INTO idempotency_keys
         SELECT 'ip:192.0.2.1', 'k' || number, 'POST', '/', sha256(''), 201, '{{}}', 'r', 1,
                now() - interval '2 days', now() - interval '1 day'
         FROM generate_series(1, {EXPIRED}) AS number;
         INSERT INTO caller_totals (caller, shard, records, bytes)
         SELECT caller, 0, count(*), sum(idempotency_key_bytes(loaded)) FROM idempotency_keys AS loaded
         WHERE caller = 'ip:192.0.2.1' GROUP BY caller;
         CREATE TABLE left_expired (of text, records bigint);
         CREATE FUNCTION count_expired() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO left_expired SELECT tg_table_name, count(*) FROM idempotency_keys WHERE caller = 'ip:192.0.2.1';
             RETURN NULL;
         END $$;
         CREATE TRIGGER deleted AFTER DELETE ON event_runs FOR EACH ROW EXECUTE FUNCTION count_expired();
         CREATE TRIGGER deleted AFTER DELETE ON idempotency_keys
         FOR EACH ROW WHEN (old.caller = 'ip:192.0.2.2') EXECUTE FUNCTION count_expired();"
    )))
    .execute(&service.pool)
    .await
    .expect("records");
    service.config_watcher.run_once().await.expect("limits");
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!(
        (report.expired, report.over_caller_cap, report.live_over_caller_cap, report.events),
        (EXPIRED, 2, 2, 3)
    );
    let left: Vec<(String, i64)> =
        sqlx::query_as("SELECT of, records FROM left_expired").fetch_all(&service.pool).await.expect("rows");
    let expected = [("event_runs", 1500); 3].into_iter().chain([("idempotency_keys", 0); 2]);
    assert_eq!(left, expected.map(|(of, records)| (of.to_owned(), records)).collect::<Vec<_>>());
    service.verify().await;
}
