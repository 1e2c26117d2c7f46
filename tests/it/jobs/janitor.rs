//! HTTP contract, section 6.5: expired records are deleted first, in steps, by one janitor at a time.

mod caps;
mod event_log;

use std::time::Duration;

use agentpay_billing::domain::cell::Dialect;
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::store::retention::OldestExpiry;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Service, usage, wait_until};

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

#[tokio::test]
async fn expired_records_are_deleted_before_live_ones() {
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
async fn callers_without_records_are_deleted() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 3).await;
    service.age_records(EXPIRED_MS).await;
    fill(&service, "192.0.2.2", 0, 1).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 3);
    assert_eq!(service.number("SELECT count(DISTINCT caller) FROM caller_totals").await, 1);
}

#[tokio::test]
async fn a_second_janitor_leaves_the_work_to_the_first() {
    let service = Service::start(CAPS).await;
    let mut other = service.pool.begin().await.expect("transaction");
    assert!(agentpay_billing::store::server::try_janitor_lock(&mut other, Dialect::PostgreSql).await.expect("lock"));
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
async fn a_reset_that_waits_for_the_janitor_runs_between_two_of_its_steps() {
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
        agentpay_billing::store::server::lock_out_janitors(&mut reset, Dialect::PostgreSql).await.expect("lock");
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
    // It ends although the table is still locked.
    wait_until(async || running.is_finished()).await;
    table.rollback().await.expect("rollback");
    // Its step is rolled back and repeated by the next run, once PostgreSQL has noticed that its client is gone.
    service.age_records(EXPIRED_MS).await;
    let prunes = async || service.janitor.run_once().await.expect("janitor").expired == 5;
    wait_until(prunes).await;
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
