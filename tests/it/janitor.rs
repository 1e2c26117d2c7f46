//! Contract section 7.3, caps: expired records first, then the oldest, each cap for itself.

use crate::support::{Service, usage};

const USAGE: &str = "/api/v1/usage";
const CAPS: &[(&str, &str)] = &[
    ("TRUST_PROXY", "1"),
    ("JANITOR_INTERVAL_MS", "3600000"),
    ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "8"),
    ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "5"),
    ("IDEMPOTENCY_CACHE_TTL_MS", "10000"),
];

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
    service.clock.advance_ms(10_000);
    for caller in ["192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        fill(&service, caller, 0, 4).await;
    }
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_total_cap, report.live_over_total_cap), (3, 4, 4));
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys WHERE caller = 'ip:192.0.2.2'").await, 0);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 8);
    // The kept counts say the same, and nothing is left to do.
    let counted = "SELECT (sum(records) FILTER (WHERE kind = 'all_replies'))::bigint FROM record_counts";
    assert_eq!(service.number(counted).await, 8);
    let report = service.janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap, report.over_total_cap), (0, 0, 0));
}

#[tokio::test]
async fn a_log_keeps_its_newest_events() {
    let service = Service::start(CAPS).await;
    fill(&service, "192.0.2.1", 0, 5).await;
    sqlx::query("UPDATE limits SET event_log_cap = 2").execute(&service.pool).await.expect("limits");
    agentpay_billing::jobs::follow_controls::run_once(&service.pool, &service.limits).await.expect("limits");
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
    service.clock.advance_ms(20_000);
    let mut writer = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT 1 FROM idempotency_keys WHERE key = 'k0' FOR UPDATE")
        .execute(&mut *writer)
        .await
        .expect("lock");
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 1);
    writer.rollback().await.expect("rollback");
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 1);
}
