//! HTTP contract, section 6.5: the caps of idempotency records: whose oldest are evicted, and who is full.

use agentpay_billing::domain::cell::Dialect;

use super::{CAP_OF_CALLER, CAPS, OLD_MS, USAGE, fill, keyed, records_of};
use crate::support::{Answer, Service, new_database, store_records, usage, wait_until};

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
    // No caller is full: the next record takes the place of the oldest.
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
    let metrics = service.metrics().await;
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
    assert!(agentpay_billing::store::server::try_janitor_lock(&mut janitor, Dialect::PostgreSql).await.expect("lock"));
    assert_eq!(keyed(&other, "192.0.2.1", "not-yet").await.status, 201);
    assert!(!other.janitor.run_once().await.expect("janitor").was_alone);
    assert_full(&keyed(&other, "192.0.2.1", "new").await);
    // One that starts knows it from the beginning.
    let third = Service::start_on(database, CAP_OF_CALLER).await;
    wait_until(async || keyed(&third, "192.0.2.1", "k0").await.replayed && third.janitor.full.count() == 1).await;
    assert_full(&keyed(&third, "192.0.2.1", "new").await);
}

/// A lane presumes that keys which are not in its cache are new. A refusal must not presume this.
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
