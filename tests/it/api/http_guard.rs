//! The guard around HTTP: what clients may hold, what they may send, and how connections end that cannot go on.

use std::io::{Read, Write};
use std::time::Duration;

use agentpay_billing::settings::http_limits::HttpLimits;
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::support::{End, Process, Service, Socket, new_database, pool, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const JSON: &str = "/api/v1/usage/export.json";
const CSV: &str = "/api/v1/usage/export.csv";

/// Pairs whose export is longer than what the buffers of two sockets take.
const MANY: i64 = 10_000;

/// Names that compression makes little of.
const FILL: &str = "WITH named AS (
                        SELECT number, string_agg(md5(number::text || part::text), '' ORDER BY part) AS agent_id
                        FROM generate_series(1, $1) AS number, generate_series(1, 8) AS part GROUP BY number
                    ), agents AS (
                        INSERT INTO agents (tenant_id, agent_id) SELECT 'public', agent_id FROM named
                    )
                    INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
                    SELECT 'public', agent_id, repeat('s', 128), number, 1 FROM named ORDER BY number";

async fn fill(service: &Service) {
    sqlx::query(FILL).bind(MANY).execute(&service.pool).await.expect("pairs");
}

/// One agent with so many pairs that the list of them is longer than what the buffers of two sockets take: 4 MB.
async fn fill_one_agent(service: &Service) {
    let sql = "WITH agents AS (INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a'))
               INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
               SELECT 'public', 'a', repeat('s', 115) || number, 1, 1 FROM generate_series(1, 25000) AS number";
    sqlx::query(sql).execute(&service.pool).await.expect("pairs");
}

fn get(path: &str, version: &str, fields: &str) -> String {
    format!("GET {path} HTTP/{version}\r\nHost: x\r\n{fields}\r\n")
}

/// The body of chunks, and whether their end is there.
fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|bytes| bytes == b"\r\n") else { return (body, false) };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).expect("ASCII"), 16).expect("a length");
        if length == 0 {
            return (body, true);
        }
        let Some(chunk) = rest.get(line + 2..line + 2 + length) else { return (body, false) };
        body.extend_from_slice(chunk);
        rest = rest.get(line + 4 + length..).unwrap_or_default();
    }
}

#[tokio::test]
async fn exports_are_complete_with_and_without_gzip_over_http_1_0_and_1_1() {
    let service = Service::start(&[("COMPRESSION", "on")]).await;
    fill(&service).await;
    for path in [CSV, JSON] {
        for version in ["1.0", "1.1"] {
            for accept in ["", "Accept-Encoding: gzip\r\n"] {
                let mut socket = Socket::connect_slow(service.address).await;
                socket.send(get(path, version, &format!("{accept}Connection: close\r\n"))).await;
                let head = socket.head().await;
                // Now the service waits for its reader, who goes on when the snapshot is at rest.
                wait_until(async || service.number(AT_REST).await == 1).await;
                let (body, end) = socket.end().await;
                let body = if version == "1.1" {
                    let (body, is_complete) = unchunked(&body);
                    assert!(is_complete, "{path} {accept}");
                    body
                } else {
                    body
                };
                assert_eq!((head.status, end), (200, End::Orderly), "{path} {version} {accept}");
                assert_eq!(head.has("content-encoding"), !accept.is_empty());
                let mut text = String::new();
                if accept.is_empty() {
                    text = String::from_utf8(body).expect("text");
                } else {
                    GzDecoder::new(body.as_slice()).read_to_string(&mut text).expect("a whole gzip stream");
                }
                let pairs = if path == CSV {
                    text.lines().count() - 1
                } else {
                    serde_json::from_str::<Value>(&text).expect("JSON")["items"].as_array().expect("items").len()
                };
                assert_eq!(pairs as i64, MANY, "{path} {version} {accept}");
            }
        }
    }
}

/// Exports that wait for their readers.
const AT_REST: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND query LIKE '-- exports::pairs_after%' AND state = 'idle in transaction'";

/// Breaks them.
const BREAK: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()
                     AND query LIKE '-- exports::pairs_after%' AND state = 'idle in transaction'";

#[tokio::test]
async fn an_export_that_breaks_off_ends_by_a_reset() {
    let service = Service::start(&[("COMPRESSION", "on")]).await;
    fill(&service).await;
    for path in [CSV, JSON] {
        for version in ["1.0", "1.1"] {
            for accept in ["", "Accept-Encoding: gzip\r\n"] {
                let mut socket = Socket::connect_slow(service.address).await;
                socket.send(get(path, version, accept)).await;
                assert_eq!(socket.head().await.status, 200);
                wait_until(async || service.number(BREAK).await == 1).await;
                let (body, end) = socket.end().await;
                assert_eq!(end, End::Reset, "{path} {version} {accept}: {} bytes", body.len());
                assert!(!body.ends_with(b"0\r\n\r\n"));
            }
        }
    }
    let text = service.client().get(CSV).await.text;
    assert_eq!(text.lines().count() as i64, MANY + 1);
}

#[tokio::test]
async fn an_export_whose_process_is_killed_ends_by_a_reset() {
    let database = new_database().await;
    let mut process = Process::start(&database, 0);
    sqlx::query(FILL).bind(MANY).execute(&pool(&database)).await.expect("pairs");
    let mut socket = Socket::connect_slow(process.address).await;
    socket.send(get(CSV, "1.0", "")).await;
    socket.wait_for(10_000).await;
    process.child.kill().expect("kill");
    assert_eq!(socket.end().await.1, End::Reset);
}

/// A second is as long as a minute is, for an answer that is not read.
fn short_answers(limits: &mut HttpLimits) {
    (limits.answer_grace, limits.answer_bytes_per_second_min) = (Duration::from_secs(1), 1 << 30);
}

#[tokio::test]
async fn an_answer_that_is_read_too_slowly_is_reset_and_nothing_of_it_is_held() {
    let service = Service::start_limited(&[], short_answers).await;
    fill(&service).await;
    fill_one_agent(&service).await;
    for (path, version) in [("/api/v1/agents/a/usage", "1.1"), (CSV, "1.1"), (JSON, "1.0")] {
        let mut socket = Socket::connect_slow(service.address).await;
        socket.send(get(path, version, "")).await;
        let head = socket.head().await;
        assert_eq!(head.status, 200);
        // Held until the connection is gone, which is seen here without a byte being read.
        let connections = async || metric(&service, "agentpay_http_connections").await;
        wait_until(async || connections().await == 1).await;
        assert_eq!(metric(&service, "agentpay_http_held_bytes").await, 0);
        let (body, end) = socket.end().await;
        assert_eq!(end, End::Reset, "{path}: {} bytes", body.len());
        wait_until(async || service.number(AT_REST).await == 0).await;
    }
}

/// A gauge, read over one connection that is kept.
async fn metric(service: &Service, name: &str) -> i64 {
    let mut socket = Socket::connect(service.address).await;
    socket.send(get("/api/v1/metrics", "1.1", "")).await;
    let (_, text) = socket.answer().await;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect("the metric");
    line.parse().expect("a number")
}

#[tokio::test]
async fn bytes_held_for_slow_readers_are_bounded() {
    let service = Service::start_limited(&[], |limits| limits.held_bytes_per_address_max = 6 << 20).await;
    fill_one_agent(&service).await;
    let request = get("/api/v1/agents/a/usage", "1.1", "");
    let mut slow = Socket::connect_slow(service.address).await;
    slow.send(&request).await;
    assert_eq!(slow.head().await.status, 200);
    let held = metric(&service, "agentpay_http_held_bytes").await;
    assert!(held > 3_000_000, "{held}");
    let refused = service.client().get("/api/v1/agents/a/usage").await;
    let message = "too many bytes wait for slow clients; nothing was changed".to_owned();
    assert_eq!(refused.error(), (503, "service_unavailable".to_owned(), message));
    assert_eq!(refused.header("retry-after"), "1");
    // Short answers, and writes, go on.
    assert_eq!(service.client().post(USAGE, &usage("b", "s", 1)).await.status, 201);
    drop(slow);
    wait_until(async || service.client().get("/api/v1/agents/a/usage").await.status == 200).await;
    wait_until(async || metric(&service, "agentpay_http_held_bytes").await == 0).await;
}

#[tokio::test]
async fn bodies_that_do_not_come_are_held_within_the_same_bounds() {
    let service = Service::start_limited(&[], |limits| limits.held_bytes_per_address_max = 150_000).await;
    let head = |length| {
        format!(
            "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut slow = Socket::connect(service.address).await;
    slow.send(head(100_000)).await;
    wait_until(async || metric(&service, "agentpay_http_held_bytes").await == 100_000).await;
    let mut other = Socket::connect(service.address).await;
    other.send(head(60_000)).await;
    let (head, text) = other.answer().await;
    assert!(head.status == 503 && text.contains("too many bytes wait for slow clients"), "{text}");
    assert_eq!(service.client().post(USAGE, &usage("b", "s", 1)).await.status, 201);
    slow.send(vec![b' '; 100_000]).await;
    assert_eq!(slow.answer().await.0.status, 400);
}

#[tokio::test]
async fn connections_of_an_address_are_bounded_and_the_next_one_is_told() {
    let service = Service::start_limited(&[], |limits| limits.connections_per_address_max = 3).await;
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

fn assert_envelope(head: &crate::support::Head, text: &str, status: u16, code: &str) {
    assert_eq!(head.status, status, "{text}");
    let body: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("JSON: {text}"));
    assert_eq!((&body["error"], &body["requestId"]), (&json!(code), &json!(head.header("x-request-id"))), "{text}");
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()));
    assert_eq!(head.header("content-type"), "application/json; charset=utf-8");
    assert_eq!((head.header("x-content-type-options"), head.header("x-frame-options")), ("nosniff", "DENY"));
    for name in ["content-security-policy", "strict-transport-security", "server-timing", "referrer-policy"] {
        assert!(head.has(name), "{name}");
    }
}

#[tokio::test]
async fn heads_that_cannot_be_read_or_trusted_are_refused_with_the_envelope() {
    let service = Service::start(&[]).await;
    let post = |fields: &str, body: &str| format!("POST {USAGE} HTTP/1.1\r\n{fields}\r\n\r\n{body}");
    let chunked = "Content-Type: application/json\r\nHost: x\r\nTransfer-Encoding";
    let long = "x".repeat(70_000);
    let many: String = (0..101).map(|number| format!("X-{number}: 1\r\n")).collect();
    for (request, status, code) in [
        // RFC 9112, section 3.2.
        ("GET /health HTTP/1.1\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: \r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: user@x\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: x,y\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("OPTIONS /health HTTP/1.1\r\n\r\n".to_owned(), 400, "invalid_request"),
        // Sections 6.1 and 6.3.
        (post(&format!("{chunked}: foo, chunked"), "0\r\n\r\n"), 501, "not_implemented"),
        (post(&format!("{chunked}: gzip\r\nTransfer-Encoding: chunked"), "0\r\n\r\n"), 501, "not_implemented"),
        (post(&format!("{chunked}: chunked, chunked"), "0\r\n\r\n"), 400, "invalid_request"),
        (post(&format!("{chunked}: chunked\r\nTransfer-Encoding: chunked"), "0\r\n\r\n"), 400, "invalid_request"),
        (post(&format!("{chunked}: foo"), ""), 400, "invalid_request"),
        (post(&format!("{chunked}: chunked, foo"), ""), 400, "invalid_request"),
        (post("Host: x\r\nContent-Length: 1\r\nContent-Length: 2", "{}"), 400, "invalid_request"),
        (post("Host: x\r\nContent-Length: -1", "{}"), 400, "invalid_request"),
        // What hyper refuses by itself.
        ("nonsense\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: x\r\nbad name: 1\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /health HTTP/9.9\r\nHost: x\r\n\r\n".to_owned(), 400, "invalid_request"),
        // What hyper says nothing to.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400, "invalid_request"),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 431, "request_header_fields_too_large"),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {long}"), 431, "request_header_fields_too_large"),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n"), 431, "request_header_fields_too_large"),
    ] {
        let mut socket = Socket::connect(service.address).await;
        socket.send(&request).await;
        let (head, text) = socket.answer().await;
        let start: String = request.chars().take(200).collect();
        assert_eq!(head.status, status, "{start}");
        assert_envelope(&head, &text, status, code);
        let (rest, end) = socket.end().await;
        assert_eq!((rest.as_slice(), end), (&b""[..], End::Orderly), "{start}");
    }
    // After a request that was served, too.
    let mut socket = Socket::connect(service.address).await;
    socket.send(format!("{}nonsense\r\n\r\n", get("/health", "1.1", ""))).await;
    assert_eq!(socket.answer().await.0.status, 200);
    let (head, text) = socket.answer().await;
    assert_envelope(&head, &text, 400, "invalid_request");
}

#[tokio::test]
async fn heads_that_are_in_order_are_served() {
    let service = Service::start(&[]).await;
    let long = "x".repeat(60_000);
    for request in [
        "GET /health HTTP/1.0\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nHost: [::1]:3001\r\nConnection: close\r\n\r\n".to_owned(),
        "GET http://example.com/health HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".to_owned(),
        format!("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {long}\r\n\r\n"),
    ] {
        let mut socket = Socket::connect(service.address).await;
        socket.send(&request).await;
        assert_eq!(socket.answer().await.0.status, 200, "{}", request.chars().take(80).collect::<String>());
        assert_eq!(socket.end().await.1, End::Orderly);
    }
    // Both kinds of framing: the chunks count, and the connection ends.
    let body = usage("a", "s", 1).to_string();
    let mut socket = Socket::connect(service.address).await;
    let framing = "Content-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: Chunked";
    socket
        .send(format!(
            "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ))
        .await;
    let (head, text) = socket.answer().await;
    assert_eq!((head.status, head.header("connection")), (201, "close"), "{text}");
    assert_eq!(socket.end().await.1, End::Orderly);
}

#[tokio::test]
async fn half_heads_hold_no_more_than_64_kib_each() {
    let service = Service::start(&[]).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let mut socket = Socket::connect(service.address).await;
        socket.send(format!("GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(380_000))).await;
        sockets.push(socket);
    }
    for mut socket in sockets {
        let (head, text) = socket.answer().await;
        assert_envelope(&head, &text, 431, "request_header_fields_too_large");
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_sends_everything_before_it_reads() {
    let settings = [("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "root")];
    let service = Service::start(&settings).await;
    let admin = service.client().with("x-api-key", "root");
    let made = admin.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let key = format!("X-API-Key: {}\r\nContent-Type: application/json\r\n", made["key"].as_str().expect("a key"));
    let body = vec![b' '; 5_000_000];
    let sized = format!("Content-Length: {}\r\n", body.len());
    let chunked = "Transfer-Encoding: chunked\r\n".to_owned();
    let mut chunks = format!("{:x}\r\n", body.len()).into_bytes();
    chunks.extend_from_slice(&body);
    for (fields, framing, bytes, status) in [
        (key.as_str(), &sized, &body, 413),
        (key.as_str(), &chunked, &chunks, 413),
        ("", &sized, &body, 401),
        ("", &chunked, &chunks, 401),
        (&key.replace("json", "xml"), &sized, &body, 415),
        (&format!("{key}Content-Encoding: zip\r\n"), &chunked, &chunks, 415),
    ] {
        refused(&service, USAGE, fields, framing, bytes, status).await;
    }
    assert_eq!(admin.send("POST", "/api/v1/admin/pause", None).await.status, 200);
    refused(&service, USAGE, &key, &sized, &body, 503).await;
    refused(&service, "/api/v1/nowhere", &key, &chunked, &chunks, 404).await;
}

async fn refused(service: &Service, path: &str, fields: &str, framing: &str, bytes: &[u8], status: u16) {
    let mut socket = Socket::connect(service.address).await;
    socket.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}{framing}\r\n")).await;
    socket.send(bytes).await;
    let (head, text) = socket.answer().await;
    assert_eq!((head.status, head.header("connection")), (status, "close"), "{text}");
    assert!(text.contains("requestId"), "{text}");
    assert_eq!(socket.end().await.1, End::Orderly);
}

#[tokio::test]
async fn a_client_that_is_refused_and_sends_on_is_read_for_a_bounded_while() {
    let service = Service::start_limited(&[], |limits| limits.linger_bytes_max = 1 << 20).await;
    let mut socket = Socket::connect(service.address).await;
    socket
        .send(format!(
            "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 1000000000\r\n\r\n"
        ))
        .await;
    assert_eq!(socket.answer().await.0.status, 415);
    let mut sent = 0_usize;
    while socket.try_send(&[b' '; 64 << 10]).await {
        sent += 64 << 10;
        assert!(sent < 100 << 20, "it is read for ever");
    }
}

#[tokio::test]
async fn a_client_that_is_refused_and_falls_silent_is_left_after_a_while() {
    let limit = |limits: &mut HttpLimits| limits.linger_silence = Duration::from_millis(50);
    let service = Service::start_limited(&[], limit).await;
    let mut silent = Socket::connect(service.address).await;
    silent.send(format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{{")).await;
    assert_eq!(silent.answer().await.0.status, 415);
    // The silent one is gone, and this is the only connection.
    wait_until(async || metric(&service, "agentpay_http_connections").await == 1).await;
}

#[tokio::test]
async fn a_body_is_only_asked_for_if_it_is_wanted() {
    let service = Service::start(&[]).await;
    let body = usage("a", "s", 1).to_string();
    let head = |kind: &str, length: usize| {
        format!(
            "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut socket = Socket::connect(service.address).await;
    socket.send(head("application/json", body.len())).await;
    assert_eq!(socket.head().await.status, 100);
    socket.send(&body).await;
    assert_eq!(socket.answer().await.0.status, 201);
    for (kind, length, status) in [("application/json", 5_000_000, 413), ("text/plain", 10, 415)] {
        let mut socket = Socket::connect(service.address).await;
        socket.send(head(kind, length)).await;
        let (head, _) = socket.answer().await;
        assert_eq!((head.status, head.header("connection")), (status, "close"));
        assert_eq!(socket.end().await.1, End::Orderly);
    }
}

#[tokio::test]
async fn a_refused_body_that_is_short_does_not_end_its_connection() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "root")]).await;
    let body = usage("a", "s", 1).to_string();
    let mut socket = Socket::connect(service.address).await;
    for _ in 0..3 {
        let length = body.len();
        socket
            .send(format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"))
            .await;
        let (head, _) = socket.answer().await;
        assert_eq!((head.status, head.has("connection")), (401, false));
    }
}

#[tokio::test]
async fn a_long_answer_reaches_a_client_that_still_sends() {
    let service = Service::start(&[]).await;
    fill(&service).await;
    let mut socket = Socket::connect(service.address).await;
    socket.send(format!("GET {CSV} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")).await;
    // It writes all of its body before it reads.
    socket.send(vec![b' '; 10_000_000]).await;
    let head = socket.head().await;
    let (body, end) = socket.end().await;
    assert_eq!((head.status, end), (200, End::Orderly));
    let (text, is_complete) = unchunked(&body);
    assert!(is_complete);
    assert_eq!(String::from_utf8(text).expect("text").lines().count() as i64, MANY + 1);
}

#[tokio::test]
async fn a_brotli_body_with_a_large_window_is_refused() {
    let service = Service::start(&[]).await;
    let hex = "111e3800027b226167656e74223a2261222c22736572766963654964223a2273222c600008227265717565737473223a317d03";
    let body: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
    let client = service.client().with("content-encoding", "br");
    let refused = client.try_send("POST", USAGE, Some(body)).await.expect("an answer").error();
    let message = "request body could not be decompressed".to_owned();
    assert_eq!(refused, (400, "invalid_request".to_owned(), message));
}

#[tokio::test]
async fn a_byte_order_mark_and_charset_utf8_are_accepted() {
    let service = Service::start(&[]).await;
    let body = [b"\xef\xbb\xbf", usage("a", "s", 1).to_string().as_bytes()].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&body).expect("memory");
    for (kind, encoding, bytes) in [
        ("application/json", "identity", body.clone()),
        ("application/json; charset=utf8", "identity", body.clone()),
        ("application/json; charset=\"UTF8\"", "gzip", gzip.finish().expect("memory")),
    ] {
        let client = service.client().with("content-type", kind).with("content-encoding", encoding);
        assert_eq!(client.try_send("POST", USAGE, Some(bytes)).await.expect("an answer").status, 201, "{kind}");
    }
}

#[tokio::test]
async fn a_tenant_has_one_export_at_a_time_and_does_not_keep_others_from_theirs() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "1000")]).await;
    fill(&service).await;
    let made = service.client().post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let other = service.client().with("x-api-key", made["key"].as_str().expect("a key"));
    let mut first = Socket::connect_slow(service.address).await;
    first.send(get(CSV, "1.1", "Connection: close\r\n")).await;
    assert_eq!(first.head().await.status, 200);
    wait_until(async || service.number(AT_REST).await == 1).await;
    // The tenant's others wait until their deadline, and hold no connection to the database meanwhile.
    let waiting: Vec<_> = (0..6)
        .map(|_| {
            let client = service.client();
            tokio::spawn(async move { client.get(JSON).await.status })
        })
        .collect();
    assert_eq!(other.get(CSV).await.text, "agent,serviceId,total\n");
    for status in waiting {
        assert_eq!(status.await.expect("a task"), 503);
    }
    assert_eq!(service.number(AT_REST).await, 1);
    // The next one has its turn when this one ends.
    assert!(unchunked(&first.end().await.0).1);
    let is_whole = async || service.client().get(CSV).await.text.lines().count() as i64 == MANY + 1;
    wait_until(is_whole).await;
    wait_until(async || service.number(AT_REST).await == 0).await;
}

#[tokio::test]
async fn a_list_that_is_too_long_to_be_whole_is_refused_and_can_be_read_in_pages() {
    let service = Service::start(&[]).await;
    let sql = "WITH agents AS (INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a'))
               INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
               SELECT 'public', 'a', 's' || number, 1, 1 FROM generate_series(1, 100000) AS number";
    sqlx::query(sql).execute(&service.pool).await.expect("pairs");
    let client = service.client();
    let whole = client.get("/api/v1/agents/a/usage").await.json();
    assert_eq!(whole["items"].as_array().map(Vec::len), Some(100_000));
    assert_eq!(client.post(USAGE, &usage("a", "one-more", 1)).await.status, 201);
    let message = "the list has more than 100000 items: read it with page and limit".to_owned();
    let refused = client.get("/api/v1/agents/a/usage").await.error();
    assert_eq!(refused, (400, "invalid_request".to_owned(), message));
    let page = client.get("/api/v1/agents/a/usage?limit=1000&page=101").await;
    assert_eq!(page.text, r#"{"agent":"a","items":[{"serviceId":"one-more","total":1}],"page":101,"pageCount":101}"#);
}
