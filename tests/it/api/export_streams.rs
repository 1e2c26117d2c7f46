//! HTTP contract, sections 2.3 and 10.6: an export that is longer than the buffers of the sockets is complete, or ends
//! by a reset.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::support::{End, Process, Service, Socket, new_database, pool, wait_until};

pub const JSON: &str = "/api/v1/usage/export.json";
pub const CSV: &str = "/api/v1/usage/export.csv";

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

pub async fn fill(service: &Service) {
    sqlx::query(FILL).bind(MANY).execute(&service.pool).await.expect("pairs");
}

pub fn get(path: &str, version: &str, fields: &str) -> String {
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

/// Path, version of HTTP, and header line of each kind of export.
fn requests() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let versions = [CSV, JSON].into_iter().flat_map(|path| ["1.0", "1.1"].map(|version| (path, version)));
    versions.flat_map(|(path, version)| ["", "Accept-Encoding: gzip\r\n"].map(|accept| (path, version, accept)))
}

/// Exports that wait for their readers.
pub const AT_REST: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND query LIKE '-- exports::pairs_after%' AND state = 'idle in transaction'";

#[tokio::test]
async fn exports_are_complete_with_and_without_gzip_over_http_1_0_and_1_1() {
    let service = Service::start(&[("COMPRESSION", "on")]).await;
    fill(&service).await;
    for (path, version, accept) in requests() {
        let mut socket = Socket::connect_slow(service.address).await;
        socket.send(get(path, version, &format!("{accept}Connection: close\r\n"))).await;
        let head = socket.head().await;
        // The service waits for its reader. Read on once the transaction of the snapshot is idle.
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

/// Breaks them.
const BREAK: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()
                     AND query LIKE '-- exports::pairs_after%' AND state = 'idle in transaction'";

#[tokio::test]
async fn an_export_that_breaks_off_ends_by_a_reset() {
    let service = Service::start(&[("COMPRESSION", "on")]).await;
    fill(&service).await;
    for (path, version, accept) in requests() {
        let mut socket = Socket::connect_slow(service.address).await;
        socket.send(get(path, version, accept)).await;
        assert_eq!(socket.head().await.status, 200);
        wait_until(async || service.number(BREAK).await == 1).await;
        let (body, end) = socket.end().await;
        assert_eq!(end, End::Reset, "{path} {version} {accept}: {} bytes", body.len());
        assert!(!body.ends_with(b"0\r\n\r\n"));
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
async fn a_tenant_has_one_export_at_a_time_and_does_not_keep_others_from_theirs() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "4000")]).await;
    fill(&service).await;
    let other = service.tenant().await;
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
