//! HTTP contract, section 6.5: expired records first, then the oldest, each cap for itself.

use std::time::Duration;

use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::store::retention::OldestExpiry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Service, new_database, store_records, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const CAPS: &[(&str, &str)] = &[
    ("TRUST_PROXY", "1"),
    ("JANITOR_INTERVAL_MS", "3600000"),
    ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "20"),
    ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "15"),
];

const CAP_OF_CALLER: &[(&str, &str)] =
    &[("TRUST_PROXY", "1"), ("JANITOR_INTERVAL_MS", "3600000"), ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "5")];

/// Old enough to be evicted, and expired.
const OLD_MS: i64 = 2 * 3_600_000;
const EXPIRED_MS: i64 = 25 * 3_600_000;

/// `count` keyed requests of one caller, a millisecond apart.
async fn fill(service: &Service, address: &str, first: usize, count: usize) {
    let client = service.client().with("x-forwarded-for", address);
    for number in first..first + count {
        service.clock.advance_ms(1);
        let answer = client.key(&format!("k{number}")).post(USAGE, &usage("a", "s", 1)).await;
        assert_eq!((answer.status, answer.replayed), (201, false));
    }
}

/// How many records a caller has, as the table and as the totals say.
async fn records_of(service: &Service, address: &str) -> i64 {
    let caller = format!("ip:{address}");
    let count = async |sql: &'static str| {
        sqlx::query_scalar::<_, i64>(sql).bind(&caller).fetch_one(&service.pool).await.expect(sql)
    };
    let records = count("SELECT count(*) FROM idempotency_keys WHERE caller = $1").await;
    let counted = "SELECT coalesce(sum(records), 0)::bigint FROM caller_totals WHERE caller = $1";
    assert_eq!(count(counted).await, records, "{address}");
    records
}

async fn keyed(service: &Service, address: &str, key: &str) -> Answer {
    service.client().with("x-forwarded-for", address).key(key).post(USAGE, &usage("a", "s", 1)).await
}

/// The refusal of a caller that is full (HTTP contract, section 6.5).
fn assert_full(answer: &Answer) {
    let message = "too many idempotency records are stored for this caller; requests with a new Idempotency-Key are refused \
                   until some may be deleted; nothing was changed";
    assert_eq!(answer.error(), (503, "service_unavailable".to_owned(), message.to_owned()));
    assert_eq!(answer.header("retry-after"), "60");
}

#[tokio::test]
async fn a_caller_over_its_cap_loses_its_own_oldest_records_only() {
    let service = Service::start(CAP_OF_CALLER).await;
    fill(&service, "192.0.2.1", 0, 2).await;
    fill(&service, "192.0.2.2", 0, 7).await;
    service.age_records(OLD_MS).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.over_caller_cap, report.over_total_cap), (2, 0));
    let left: Vec<(String, String)> = sqlx::query_as("SELECT caller, key FROM idempotency_keys ORDER BY caller, key")
        .fetch_all(&service.pool)
        .await
        .expect("rows");
    let left: Vec<String> = left.into_iter().map(|(caller, key)| format!("{caller} {key}")).collect();
    let of = |address: &'static str, keys: std::ops::Range<usize>| keys.map(move |key| format!("ip:{address} k{key}"));
    assert_eq!(left, of("192.0.2.1", 0..2).chain(of("192.0.2.2", 2..7)).collect::<Vec<_>>());
    // Nobody is full: the next one takes the place of the oldest.
    assert_eq!(keyed(&service, "192.0.2.2", "new").await.status, 201);
    assert_eq!(service.janitor.run_once().await.expect("janitor").over_caller_cap, 1);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys WHERE key = 'k2'").await, 0);
}

#[tokio::test]
async fn over_the_total_cap_those_with_the_most_lose_their_oldest_down_to_a_common_level() {
    let service = Service::start(CAPS).await;
    let first = keyed(&service, "192.0.2.1", "k0").await;
    for address in ["192.0.2.2", "192.0.2.3"] {
        fill(&service, address, 0, 15).await;
    }
    service.age_records(OLD_MS).await;
    let report = service.janitor.run_once().await.expect("janitor");
    // 1 + 9 + 9 is as near to 20 as equals come.
    assert_eq!((report.expired, report.over_caller_cap, report.over_total_cap), (0, 0, 12));
    for (address, records) in [("192.0.2.1", 1), ("192.0.2.2", 9), ("192.0.2.3", 9)] {
        assert_eq!(records_of(&service, address).await, records, "{address}");
    }
    let again = keyed(&service, "192.0.2.1", "k0").await;
    assert!(again.replayed && again.same(&first));
    assert!(keyed(&service, "192.0.2.3", "k14").await.replayed, "the newest stay");
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap, report.over_total_cap), (0, 0, 0));
    service.verify().await;
}

#[tokio::test]
async fn what_expired_goes_before_anything_live() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 15).await;
    service.age_records(EXPIRED_MS - OLD_MS).await;
    fill(&service, "192.0.2.1", 15, 10).await;
    fill(&service, "192.0.2.2", 0, 10).await;
    service.age_records(OLD_MS).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap, report.over_total_cap), (15, 0, 0));
    assert_eq!(records_of(&service, "192.0.2.1").await, 10);
}

#[tokio::test]
async fn a_caller_with_nothing_but_young_records_gets_no_new_ones_and_keeps_all_it_has() {
    let service = Service::start(CAP_OF_CALLER).await;
    fill(&service, "192.0.2.1", 0, 8).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.over_caller_cap, records_of(&service, "192.0.2.1").await), (0, 8));
    assert_full(&keyed(&service, "192.0.2.1", "new").await);
    // Its repetitions, its requests without a key, and others go on.
    for key in 0..8 {
        assert!(keyed(&service, "192.0.2.1", &format!("k{key}")).await.replayed);
    }
    let unkeyed = service.client().with("x-forwarded-for", "192.0.2.1").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(unkeyed.status, 201);
    fill(&service, "192.0.2.2", 0, 5).await;
    let metrics = service.client().get("/api/v1/metrics").await.text;
    assert!(metrics.contains("\nagentpay_idempotency_full_callers 1\n"), "{metrics}");
    // After an hour its oldest go, and what was refused is executed.
    service.age_records(OLD_MS).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").over_caller_cap, 3);
    assert_eq!(keyed(&service, "192.0.2.1", "new").await.status, 201);
    assert_eq!(service.number("SELECT count(*) FROM full_callers").await, 0);
    service.verify().await;
}

#[tokio::test]
async fn over_the_total_cap_callers_above_the_level_are_full_and_those_below_are_not() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 1).await;
    fill(&service, "192.0.2.2", 0, 15).await;
    fill(&service, "192.0.2.3", 0, 15).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.over_caller_cap, report.over_total_cap), (0, 0));
    for address in ["192.0.2.2", "192.0.2.3"] {
        assert_full(&keyed(&service, address, "new").await);
        assert!(keyed(&service, address, "k0").await.replayed);
    }
    assert!(keyed(&service, "192.0.2.1", "k0").await.replayed);
    assert_eq!(keyed(&service, "192.0.2.1", "new").await.status, 201);
    assert_eq!(keyed(&service, "192.0.2.4", "new").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_does_not_prune_learns_who_is_full() {
    let database = new_database().await;
    let service = Service::start_on(database.clone(), CAP_OF_CALLER).await;
    let other = Service::start_on(database.clone(), CAP_OF_CALLER).await;
    fill(&service, "192.0.2.1", 0, 6).await;
    service.janitor.run_once().await.expect("janitor");
    let mut janitor = service.pool.begin().await.expect("transaction");
    assert!(agentpay_billing::store::server::try_janitor_lock(&mut janitor).await.expect("lock"));
    assert_eq!(keyed(&other, "192.0.2.1", "not-yet").await.status, 201);
    assert!(!other.janitor.run_once().await.expect("janitor").was_alone);
    assert_full(&keyed(&other, "192.0.2.1", "new").await);
    // One that starts knows it from the beginning.
    let third = Service::start_on(database, CAP_OF_CALLER).await;
    wait_until(async || keyed(&third, "192.0.2.1", "k0").await.replayed && third.janitor.full.count() == 1).await;
    assert_full(&keyed(&third, "192.0.2.1", "new").await);
}

/// A lane that is warm presumes keys that it does not remember to be new, which a refusal must not.
#[tokio::test(flavor = "multi_thread")]
async fn repetitions_of_a_full_caller_are_answered_by_a_lane_that_has_not_seen_them() {
    let database = new_database().await;
    let service = Service::start_on(database.clone(), CAP_OF_CALLER).await;
    fill(&service, "192.0.2.1", 0, 6).await;
    service.janitor.run_once().await.expect("janitor");
    let other = Service::start_on(database, CAP_OF_CALLER).await;
    for _ in 0..100 {
        assert_eq!(other.client().post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    other.janitor.run_once().await.expect("janitor");
    assert_full(&keyed(&other, "192.0.2.1", "new").await);
    for key in 0..6 {
        assert!(keyed(&other, "192.0.2.1", &format!("k{key}")).await.replayed);
    }
}

#[tokio::test]
async fn records_that_live_for_less_than_an_hour_are_never_evicted() {
    let settings = [CAP_OF_CALLER, &[("IDEMPOTENCY_CACHE_TTL_MS", "600000")]].concat();
    let service = Service::start(&settings).await;
    fill(&service, "192.0.2.1", 0, 8).await;
    service.age_records(500_000).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap), (0, 0));
    assert_full(&keyed(&service, "192.0.2.1", "new").await);
    service.age_records(200_000).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 8);
    assert_eq!(keyed(&service, "192.0.2.1", "new").await.status, 201);
}

#[tokio::test]
async fn the_bytes_of_a_caller_are_capped_like_its_records() {
    let bytes_max = ("IDEMPOTENCY_MAX_BYTES_PER_CALLER", "1000000");
    let service = Service::start(&[("TRUST_PROXY", "1"), ("JANITOR_INTERVAL_MS", "3600000"), bytes_max]).await;
    store_records(&service.pool, "ip:192.0.2.1", 15, OLD_MS, 99_000).await;
    store_records(&service.pool, "ip:192.0.2.2", 5, OLD_MS, 99_000).await;
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.over_caller_cap, report.over_total_cap), (5, 0));
    assert_eq!((records_of(&service, "192.0.2.1").await, records_of(&service, "192.0.2.2").await), (10, 5));
    store_records(&service.pool, "ip:192.0.2.2", 6, 0, 99_000).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").over_caller_cap, 1);
    assert_eq!(keyed(&service, "192.0.2.2", "new").await.status, 201);
    // Now all that may go is gone.
    store_records(&service.pool, "ip:192.0.2.2", 9, 0, 99_000).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").over_caller_cap, 4);
    assert_full(&keyed(&service, "192.0.2.2", "newer").await);
}

#[tokio::test]
async fn callers_that_have_nothing_left_are_forgotten() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 3).await;
    service.age_records(EXPIRED_MS).await;
    fill(&service, "192.0.2.2", 0, 1).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 3);
    assert_eq!(service.number("SELECT count(DISTINCT caller) FROM caller_totals").await, 1);
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
    service.age_records(EXPIRED_MS).await;
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
    let service = Service::start(CAP_OF_CALLER).await;
    fill(&service, "192.0.2.1", 0, 1).await;
    service.age_records(EXPIRED_MS).await;
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
    service.age_records(OLD_MS).await;
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
    let service = Service::start(CAP_OF_CALLER).await;
    let records = "SELECT count(*) FROM idempotency_keys";
    let mut janitor = service.janitor.clone();
    janitor.settings.pause = Duration::from_millis(10);
    let stop = CancellationToken::new();
    let running = tokio::spawn(janitor.run(stop.clone()));
    // Left to itself it prunes.
    fill(&service, "192.0.2.1", 0, 7).await;
    service.age_records(OLD_MS).await;
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
    service.age_records(EXPIRED_MS).await;
    let prunes = async || service.janitor.run_once().await.expect("janitor").expired == 5;
    wait_until(prunes).await;
}

/// Many that expire together are one part of the walk, and more than one transaction may remove.
#[tokio::test]
async fn no_more_is_evicted_than_is_over_the_cap_however_much_expires_together() {
    let settings = [("JANITOR_INTERVAL_MS", "3600000"), ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "1000")];
    let service = Service::start(&settings).await;
    store_records(&service.pool, "ip:192.0.2.1", 3500, OLD_MS, 100).await;
    store_records(&service.pool, "ip:192.0.2.2", 900, OLD_MS, 100).await;
    let together = "UPDATE idempotency_keys SET expires_at = (SELECT min(expires_at) FROM idempotency_keys)";
    sqlx::query(together).execute(&service.pool).await.expect("records that expire together");
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!(report.over_caller_cap, 2500);
    assert_eq!((records_of(&service, "192.0.2.1").await, records_of(&service, "192.0.2.2").await), (1000, 900));
}

#[tokio::test]
async fn the_oldest_expired_record_is_looked_for_once_a_second() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 2).await;
    service.age_records(EXPIRED_MS).await;
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
