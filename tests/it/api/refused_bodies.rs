//! HTTP contract, section 2.6: requests that are refused before their body is read, and what becomes of the connection.

use std::time::Duration;

use agentpay_billing::settings::Settings;
use serde_json::json;

use crate::support::{End, Service, Socket, usage, wait_until};

const USAGE: &str = "/api/v1/usage";

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
async fn a_client_that_is_refused_and_sends_on_is_read_up_to_a_limit() {
    let service = Service::start_limited(&[], |settings| settings.http_limits.linger_bytes_max = 1 << 20).await;
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
async fn a_client_that_is_refused_and_sends_nothing_more_is_closed_after_a_while() {
    let limit = |settings: &mut Settings| settings.http_limits.linger_silence = Duration::from_millis(50);
    let service = Service::start_limited(&[], limit).await;
    let mut silent = Socket::connect(service.address).await;
    silent.send(format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{{")).await;
    assert_eq!(silent.answer().await.0.status, 415);
    // The silent one is gone, and this is the only connection.
    wait_until(async || service.metric("agentpay_http_connections").await == 1).await;
}

#[tokio::test]
async fn a_body_is_asked_for_only_if_it_would_be_accepted() {
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
