//! HTTP contract, section 2.3: limits of each address: its connections, the bytes that it does not read, and the bodies
//! that it does not send.

use std::time::Duration;

use agentpay_billing::settings::Settings;

use super::export_streams::{AT_REST, CSV, JSON, fill, get};
use super::request_heads::assert_envelope;
use crate::support::{End, Service, Socket, usage, wait_until};

const USAGE: &str = "/api/v1/usage";

/// One agent with so many pairs that the list of them is longer than what the buffers of two sockets take: 4 MB.
async fn fill_one_agent(service: &Service) {
    let sql = "WITH agents AS (INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a'))
               INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
               SELECT 'public', 'a', repeat('s', 115) || number, 1, 1 FROM generate_series(1, 25000) AS number";
    sqlx::query(sql).execute(&service.pool).await.expect("pairs");
}

/// An answer that is not read is given up after a second instead of a minute.
fn short_answers(settings: &mut Settings) {
    let limits = &mut settings.http_limits;
    (limits.answer_grace, limits.answer_bytes_per_second_min) = (Duration::from_secs(1), 1 << 30);
}

#[tokio::test]
async fn an_answer_that_is_read_too_slowly_ends_by_a_reset_and_frees_its_bytes() {
    let service = Service::start_limited(&[], short_answers).await;
    fill(&service).await;
    fill_one_agent(&service).await;
    for (path, version) in [("/api/v1/agents/a/usage", "1.1"), (CSV, "1.1"), (JSON, "1.0")] {
        let mut socket = Socket::connect_slow(service.address).await;
        socket.send(get(path, version, "")).await;
        let head = socket.head().await;
        assert_eq!(head.status, 200);
        // Held until the connection is gone, which is seen here without a byte being read.
        let connections = async || service.metric("agentpay_http_connections").await;
        wait_until(async || connections().await == 1).await;
        wait_until(async || service.metric("agentpay_http_held_bytes").await == 0).await;
        let (body, end) = socket.end().await;
        assert_eq!(end, End::Reset, "{path}: {} bytes", body.len());
        wait_until(async || service.number(AT_REST).await == 0).await;
    }
}

#[tokio::test]
async fn bytes_held_for_slow_readers_are_limited() {
    let service =
        Service::start_limited(&[], |settings| settings.http_limits.held_bytes_per_address_max = 6 << 20).await;
    fill_one_agent(&service).await;
    let request = get("/api/v1/agents/a/usage", "1.1", "");
    let mut slow = Socket::connect_slow(service.address).await;
    slow.send(&request).await;
    assert_eq!(slow.head().await.status, 200);
    let held = service.metric("agentpay_http_held_bytes").await;
    assert!(held > 3_000_000, "{held}");
    let refused = service.client().get("/api/v1/agents/a/usage").await;
    let message = "too many bytes wait for slow clients; nothing was changed".to_owned();
    assert_eq!(refused.error(), (503, "service_unavailable".to_owned(), message));
    assert_eq!(refused.header("retry-after"), "1");
    // Short answers, and writes, go on.
    assert_eq!(service.client().post(USAGE, &usage("b", "s", 1)).await.status, 201);
    drop(slow);
    wait_until(async || service.client().get("/api/v1/agents/a/usage").await.status == 200).await;
    wait_until(async || service.metric("agentpay_http_held_bytes").await == 0).await;
}

#[tokio::test]
async fn bodies_that_do_not_arrive_count_against_the_same_limit() {
    let service =
        Service::start_limited(&[], |settings| settings.http_limits.held_bytes_per_address_max = 150_000).await;
    let head = |length| {
        format!(
            "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut slow = Socket::connect(service.address).await;
    slow.send(head(100_000)).await;
    wait_until(async || service.metric("agentpay_http_held_bytes").await == 100_000).await;
    let mut other = Socket::connect(service.address).await;
    other.send(head(60_000)).await;
    let (head, text) = other.answer().await;
    assert!(head.status == 503 && text.contains("too many bytes wait for slow clients"), "{text}");
    assert_eq!(service.client().post(USAGE, &usage("b", "s", 1)).await.status, 201);
    slow.send(vec![b' '; 100_000]).await;
    assert_eq!(slow.answer().await.0.status, 400);
}

#[tokio::test]
async fn connections_of_an_address_are_limited_and_the_next_one_is_refused() {
    let service = Service::start_limited(&[], |settings| settings.http_limits.connections_per_address_max = 3).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut socket = Socket::connect(service.address).await;
        socket.send(get("/health", "1.1", "")).await;
        assert_eq!(socket.answer().await.0.status, 200);
        open.push(socket);
    }
    let mut refused = Socket::connect(service.address).await;
    refused.send(get("/health", "1.1", "")).await;
    let (head, text) = refused.answer().await;
    assert_envelope(&head, &text, 503, "service_unavailable");
    assert_eq!((head.header("connection"), head.header("retry-after")), ("close", "1"));
    drop(open.pop());
    let is_served = async || {
        let mut socket = Socket::connect(service.address).await;
        socket.send(get("/health", "1.1", "")).await;
        socket.answer().await.0.status == 200
    };
    wait_until(is_served).await;
}
