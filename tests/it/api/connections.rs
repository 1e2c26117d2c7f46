//! Silent and half-finished connections: each is bounded by its own setting, and none holds up a stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{BLOCKED, Process, Service, Socket, new_database, pool, url, usage, wait_until};

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LONG_MS: &str = "600000";

#[tokio::test]
async fn a_connection_that_is_idle_after_an_answer_closes_by_the_keepalive_timeout() {
    let service = Service::start(&[("KEEPALIVE_TIMEOUT_MS", "2000"), ("HEADERS_TIMEOUT_MS", LONG_MS)]).await;
    let mut socket = Socket::connect(service.address).await;
    for _ in 0..3 {
        socket.send(HEALTH).await;
        assert_eq!(socket.answer().await.0.status, 200);
    }
    assert_eq!(socket.rest().await, "");
}

#[tokio::test]
async fn a_connection_that_never_sends_anything_closes_by_the_keepalive_timeout() {
    let service = Service::start(&[("KEEPALIVE_TIMEOUT_MS", "200"), ("HEADERS_TIMEOUT_MS", LONG_MS)]).await;
    assert_eq!(Socket::connect(service.address).await.rest().await, "");
}

#[tokio::test]
async fn a_head_that_has_begun_is_given_the_headers_timeout_and_then_408() {
    let service = Service::start(&[("KEEPALIVE_TIMEOUT_MS", "1000"), ("HEADERS_TIMEOUT_MS", "3000")]).await;
    let began = Instant::now();
    let mut socket = Socket::connect(service.address).await;
    socket.send("GET /health HTTP/1.1\r\n").await;
    let (head, text) = socket.answer().await;
    assert_eq!((head.status, head.header("connection")), (408, "close"));
    assert!(text.contains(r#""error":"request_timeout""#) && text.contains(head.header("x-request-id")), "{text}");
    assert_eq!(socket.rest().await, "");
    assert!(began.elapsed() >= Duration::from_millis(3000), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_under_way_is_no_idle_connection() {
    let service = Service::start(&[("KEEPALIVE_TIMEOUT_MS", "400"), ("HEADERS_TIMEOUT_MS", "400")]).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE usage_counters").execute(&mut *holder).await.expect("lock");
    let mut socket = Socket::connect(service.address).await;
    socket.send("GET /api/v1/usage/a/s HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    // Longer than those, and shorter than a read waits for a lock.
    sqlx::query("SELECT pg_sleep(0.8)").execute(&mut *holder).await.expect("a while");
    holder.rollback().await.expect("rollback");
    assert_eq!(socket.answer().await.1, r#"{"agent":"a","serviceId":"s","total":0}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_hold_up_a_stop() {
    let database = url(&new_database().await);
    let mut process = Process::start_with(&[("DATABASE_URL", &database), ("KEEPALIVE_TIMEOUT_MS", LONG_MS)], 0);
    let fresh = Socket::connect(process.address).await;
    let mut idle = Socket::connect(process.address).await;
    idle.send(HEALTH).await;
    idle.answer().await;
    let mut half = Socket::connect(process.address).await;
    half.send("GET /health HTT").await;
    // Answered after those: all three were accepted before.
    assert_eq!(process.client().get("/health").await.status, 200);
    process.signal("-TERM");
    for silent in [fresh, idle, half] {
        assert_eq!(silent.rest().await, "");
    }
    assert_eq!(process.exit().await.code(), Some(0));
}

async fn assert_stops_at_the_drain_limit(process: &mut Process) {
    let began = Instant::now();
    process.signal("-TERM");
    assert_eq!(process.exit().await.code(), Some(1));
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_finish_within_10_s_is_cut_and_the_exit_code_is_1() {
    let mut process = Process::start(&new_database().await, 0);
    let mut hung = Socket::connect(process.address).await;
    let head = "POST /api/v1/usage HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{";
    hung.send(head).await;
    assert_eq!(process.client().get("/health").await.status, 200);
    assert_stops_at_the_drain_limit(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_commit_does_not_hold_up_a_stop_when_its_client_is_gone() {
    let database = new_database().await;
    let mut process = Process::start_with(&[("DATABASE_URL", &url(&database)), ("REQUEST_TIMEOUT_MS", LONG_MS)], 0);
    assert_eq!(process.client().post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let pool = pool(&database);
    let mut holder = pool.begin().await.expect("transaction");
    sqlx::query("SELECT 1 FROM usage_counters FOR UPDATE").execute(&mut *holder).await.expect("lock");
    let body = usage("a", "s", 1).to_string();
    let length = body.len();
    let mut gone = Socket::connect(process.address).await;
    gone.send(&format!(
        "POST /api/v1/usage HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
    .await;
    let blocked = async || sqlx::query_scalar::<_, i64>(BLOCKED).fetch_one(&pool).await.expect("a number");
    wait_until(async || blocked().await > 0).await;
    drop(gone);
    assert_stops_at_the_drain_limit(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_aborts_at_once() {
    let database = url(&new_database().await);
    let mut process = Process::start_with(&[("DATABASE_URL", &database), ("SHUTDOWN_GRACE_MS", LONG_MS)], 0);
    process.signal("-TERM");
    // Still served, and no longer ready: the grace has begun.
    wait_until(async || process.client().get("/api/v1/health/ready").await.status == 503).await;
    assert_eq!(process.client().get("/health").await.status, 200);
    process.signal("-INT");
    assert_eq!(process.exit().await.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_whose_clients_are_gone_leave_no_transaction_open() {
    let service = Service::start(&[]).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                AND state LIKE 'idle in transaction%'";
    for _ in 0..12 {
        let answered = Arc::new(AtomicU64::new(0));
        let clients = (0..64).map(|_| {
            let (client, answered) = (service.client(), answered.clone());
            tokio::spawn(async move {
                loop {
                    assert_eq!(client.get("/api/v1/events").await.status, 200);
                    answered.fetch_add(1, Ordering::AcqRel);
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        // By then requests are anywhere in their work; and then all clients hang up.
        wait_until(async || answered.load(Ordering::Acquire) > 100).await;
        clients.iter().for_each(tokio::task::JoinHandle::abort);
    }
    wait_until(async || service.number(open).await == 0).await;
}
