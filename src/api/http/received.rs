//! A request as it was received: what the response headers and the log need.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{Method, Uri};
use uuid::Uuid;

use crate::domain::identifiers::without_keys;
use crate::telemetry::RequestSpan;
use crate::telemetry::traces::RequestTrace;

use crate::api::http::header_names::X_REQUEST_ID;

/// Maximum number of characters of a path in a span: spans wait in a queue.
const SPAN_PATH_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub struct Received {
    pub method: Method,
    /// As sent, without the query.
    pub path: String,
    pub span: Arc<RequestSpan>,
    pub began: Instant,
}

impl Received {
    pub fn now(request: &Request) -> Self {
        let original = request.extensions().get::<OriginalPath>().map(|path| path.0.clone());
        let path = original.unwrap_or_else(|| request.uri().path().to_owned());
        let request_id = request_id(request);
        let trace = RequestTrace::begin(request.headers(), &request_id, || {
            without_keys(&path).chars().take(SPAN_PATH_MAX).collect()
        });
        Self {
            method: request.method().clone(),
            path,
            span: RequestSpan::new(request_id, trace),
            began: Instant::now(),
        }
    }

    /// The id that the client sent, or a random one.
    pub fn request_id(&self) -> &str {
        &self.span.request_id
    }
}

/// The path as sent, before its trailing slash was removed.
#[derive(Clone, Debug)]
struct OriginalPath(String);

/// Removes one trailing slash from the path.
pub fn take_off_slash(request: &mut Request) {
    let path = request.uri().path();
    let Some(bare) = path.strip_suffix('/').filter(|bare| !bare.is_empty()) else { return };
    let target = match request.uri().query() {
        Some(query) => format!("{bare}?{query}"),
        None => bare.to_owned(),
    };
    let original = OriginalPath(path.to_owned());
    if let Ok(uri) = target.parse::<Uri>() {
        *request.uri_mut() = uri;
        request.extensions_mut().insert(original);
    }
}

fn request_id(request: &Request) -> String {
    request
        .headers()
        .get(X_REQUEST_ID)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .filter(|id| (1..=200).contains(&id.len()) && id.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        .map_or_else(random_id, str::to_owned)
}

fn random_id() -> String {
    Uuid::new_v4().hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned()
}
