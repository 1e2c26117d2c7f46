//! A fresh database has no statistics, and plans made then must serve when it has grown: the work per request is
//! compared by counts of buffers, never by the clock. `GROWTH_REQUESTS` sets how many requests are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{Service, usage};

const CLIENTS: u64 = 64;
const PAIRS: u64 = 10_000;

/// Buffers of tables and indexes touched so far, and rows read by sequential scans of the tables that grow.
async fn work(service: &Service) -> (i64, i64) {
    let buffers = service
        .number(
            "SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))::bigint \
             FROM pg_statio_user_tables",
        )
        .await;
    let scanned = service
        .number(
            "SELECT sum(seq_tup_read)::bigint FROM pg_stat_user_tables \
             WHERE relname IN ('idempotency_keys', 'usage_counters', 'events', 'settlements')",
        )
        .await;
    (buffers, scanned)
}

async fn send(service: &Service, first: u64, count: u64) {
    let next = Arc::new(AtomicU64::new(first));
    let tasks = (0..CLIENTS).map(|_| {
        let (next, client) = (next.clone(), service.client());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= first + count {
                    return;
                }
                let body = usage(&format!("agent-{}", number * 7919 % PAIRS), "s", 1);
                let answer = client.key(&format!("key-{number}")).post("/api/v1/usage", &body).await;
                assert_eq!((answer.status, answer.replayed), (201, false), "{answer:?}");
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        task.await.expect("a client");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_per_request_does_not_grow_with_the_database() {
    let requests = std::env::var("GROWTH_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let fifth: u64 = requests / 5;
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000"), ("COMMIT_LANES", "1")]).await;
    let mut buffers = Vec::new();
    for round in 0..5 {
        let before = work(&service).await;
        send(&service, round * fifth, fifth).await;
        let after = work(&service).await;
        buffers.push(after.0 - before.0);
        assert!(after.1 - before.1 < fifth as i64, "sequential scans read {} rows", after.1 - before.1);
    }
    println!("buffers per fifth: {buffers:?}");
    // A request touches about twenty buffers; a plan that scans touches hundreds.
    assert!(buffers[0] < 40 * fifth as i64, "the work is too much: {buffers:?}");
    assert!(buffers[4] < 2 * buffers[0], "the work grew: {buffers:?}");
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 5 * fifth as i64);
    assert_eq!(service.number("SELECT sum(lifetime)::bigint FROM usage_counters").await, 5 * fifth as i64);
    service.verify().await;
}
