//! HTTP contract, section 2.4: request heads and framing: what is served, and what is refused before any route.

use serde_json::{Value, json};

use crate::support::{End, Head, Service, Socket, usage};

const USAGE: &str = "/api/v1/usage";

/// An error in the form of all others, although no request was read.
pub fn assert_envelope(head: &Head, text: &str, status: u16, code: &str) {
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
async fn malformed_and_ambiguous_heads_are_refused_with_the_error_envelope() {
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
    socket.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n").await;
    assert_eq!(socket.answer().await.0.status, 200);
    let (head, text) = socket.answer().await;
    assert_envelope(&head, &text, 400, "invalid_request");
}

#[tokio::test]
async fn valid_heads_are_served() {
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
async fn http_1_0_is_served() {
    let service = Service::start(&[]).await;
    let mut socket = Socket::connect(service.address).await;
    socket.send("GET /health HTTP/1.0\r\n\r\n").await;
    let answer = socket.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(answer.ends_with(r#"{"status":"ok","service":"agentpay-backend"}"#), "{answer}");
}

#[tokio::test]
async fn incomplete_heads_hold_at_most_64_kib_each() {
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
