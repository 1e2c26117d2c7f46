//! The headers that every response has.

use std::time::Duration;

use axum::http::Method;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

use crate::telemetry::Milliseconds;

use crate::api::http::header_names::{
    PERMISSIONS_POLICY, RATELIMIT_LIMIT, RATELIMIT_REMAINING, RATELIMIT_RESET, SERVER_TIMING, X_RATELIMIT_LIMIT,
    X_RATELIMIT_REMAINING, X_RATELIMIT_RESET, X_REQUEST_ID,
};
use crate::api::http::rate_limit::RateLimitStatus;
use crate::api::http::received::Received;

const CSP: &str = "default-src 'none'; base-uri 'none'; connect-src 'none'; font-src 'none'; form-action 'none'; \
    frame-ancestors 'none'; img-src 'none'; manifest-src 'none'; media-src 'none'; object-src 'none'; \
    script-src 'none'; script-src-attr 'none'; style-src 'none'; worker-src 'none'";

static FIXED: [(HeaderName, HeaderValue); 6] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=63072000; includeSubDomains; preload")),
    (PERMISSIONS_POLICY, HeaderValue::from_static("geolocation=(), camera=(), microphone=()")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)),
];

const NO_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");
const BY_TENANT: HeaderValue = HeaderValue::from_static("X-API-Key, X-Tenant-Id");

/// Enough for the headers of nearly every response.
const CAPACITY: usize = 20;

/// `took`: how long the request took.
pub fn add(headers: &mut HeaderMap, received: &Received, took: Duration) {
    let Received { method, path, .. } = received;
    // Headers that the response already has win: the HTML page has its own content security policy.
    let own = std::mem::replace(headers, HeaderMap::with_capacity(CAPACITY));
    headers.extend(FIXED.iter().cloned());
    headers.extend(own);
    if let Ok(value) = HeaderValue::from_str(received.request_id()) {
        headers.insert(X_REQUEST_ID, value);
    }
    let mut timing = b"app;dur=".to_vec();
    Milliseconds::of(took).write(&mut timing);
    headers.insert(SERVER_TIMING, HeaderValue::try_from(timing).expect("a number"));
    let is_api = path.strip_prefix("/api/v1").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if *method == Method::OPTIONS {
        return;
    }
    if is_api || path == "/health" || path == "/health/" {
        headers.entry(CACHE_CONTROL).or_insert(NO_CACHE);
    }
    if is_api {
        headers.append(VARY, BY_TENANT);
    }
}

/// The caller's quota, in both notations.
pub fn add_rate_limit(headers: &mut HeaderMap, status: &RateLimitStatus) {
    for (value, names) in [
        (status.limit, [RATELIMIT_LIMIT, X_RATELIMIT_LIMIT]),
        (status.remaining, [RATELIMIT_REMAINING, X_RATELIMIT_REMAINING]),
        (status.reset_seconds, [RATELIMIT_RESET, X_RATELIMIT_RESET]),
    ] {
        let value = HeaderValue::from(value);
        for name in names {
            headers.insert(name, value.clone());
        }
    }
    if !status.allowed {
        headers.insert(RETRY_AFTER, HeaderValue::from(status.reset_seconds));
    }
}
