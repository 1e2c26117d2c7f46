//! Responses to what never became a request: a head that hyper cannot read, or a connection beyond the limit. They have
//! the error envelope, the headers of every response, and a request id, which the log also shows.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::info;
use uuid::Uuid;

use crate::domain::refusal::Refusal;
use crate::metrics;
use crate::telemetry::RequestSpan;

use crate::api::http::headers;
use crate::api::http::received::Received;

/// Replaces the response that hyper wrote. Status and date are kept.
pub fn answer(written: &[u8]) -> Bytes {
    let refusal = match written.get(9..12) {
        Some(b"431") => Refusal::HeadTooLarge,
        Some(b"414") => Refusal::TargetTooLong,
        _ => Refusal::MalformedHead,
    };
    let date = written.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"date: "));
    let date = date.and_then(|date| HeaderValue::from_bytes(date.trim_ascii_end()).ok());
    write(&refusal, date.map(|date| (header::DATE, date)))
}

/// The response to a head for which hyper wrote none.
pub fn unanswered(refusal: Refusal) -> Bytes {
    write(&refusal, None)
}

/// The response on a connection from which nothing was read.
pub fn refusal(refusal: Refusal) -> Bytes {
    write(&refusal, Some((header::RETRY_AFTER, HeaderValue::from_static("1"))))
}

/// Sends a response and closes the connection. What the client sends is read until it closes, because closing a socket
/// with unread bytes would discard the response.
pub async fn send(stream: &mut TcpStream, response: &[u8]) {
    if stream.write_all(response).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut space = [0; 4096];
        while stream.read(&mut space).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

fn write(refusal: &Refusal, more: Option<(HeaderName, HeaderValue)>) -> Bytes {
    let (status, _) = refusal.status_and_code();
    let request_id = Uuid::new_v4().to_string();
    let body = refusal.to_body("", "", &request_id);
    let span = RequestSpan::new(request_id, None);
    let received = Received { method: Method::GET, path: String::new(), span, began: Instant::now() };
    let mut fields = HeaderMap::new();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    fields.extend(more);
    headers::add(&mut fields, &received, received.began.elapsed());
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let mut answer = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
    for (name, value) in &fields {
        answer.extend_from_slice(name.as_str().as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(&body);
    metrics::http_request("OTHER", "unmatched", &status.to_string(), Duration::ZERO);
    info!(requestId = received.request_id(), status, error = %refusal, "connection refused");
    answer.into()
}
