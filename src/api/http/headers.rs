//! The headers that every response has.

use std::sync::LazyLock;

use axum::http::Method;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

use crate::api::http::rate_limit::RateLimitStatus;
use crate::api::http::received::Received;

const CSP: &str = "default-src 'none'; base-uri 'none'; connect-src 'none'; font-src 'none'; form-action 'none'; \
    frame-ancestors 'none'; img-src 'none'; manifest-src 'none'; media-src 'none'; object-src 'none'; \
    script-src 'none'; script-src-attr 'none'; style-src 'none'; worker-src 'none'";

/// Built once and cloned for each response.
static FIXED: LazyLock<HeaderMap> = LazyLock::new(|| {
    HeaderMap::from_iter([
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=63072000; includeSubDomains; preload")),
        (
            HeaderName::from_static("permissions-policy"),
            HeaderValue::from_static("geolocation=(), camera=(), microphone=()"),
        ),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP)),
    ])
});

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

pub fn add(headers: &mut HeaderMap, received: &Received) {
    let Received { method, path, began, .. } = received;
    // Headers that the response already has win: the HTML page has its own content security policy.
    let own = std::mem::replace(headers, FIXED.clone());
    headers.extend(own);
    if let Ok(value) = HeaderValue::from_str(received.request_id()) {
        headers.insert(X_REQUEST_ID, value);
    }
    let timing = format!("app;dur={:.1}", began.elapsed().as_secs_f64() * 1000.0);
    headers.insert(SERVER_TIMING, HeaderValue::from_str(&timing).expect("a number"));
    let is_api = path.strip_prefix("/api/v1").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if *method == Method::OPTIONS {
        return;
    }
    if is_api || path == "/health" || path == "/health/" {
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    }
    if is_api {
        headers.append(VARY, HeaderValue::from_static("X-API-Key"));
    }
}

/// The caller's quota, in both notations.
pub fn add_rate_limit(headers: &mut HeaderMap, status: &RateLimitStatus) {
    for (value, names) in [
        (status.limit, ["ratelimit-limit", "x-ratelimit-limit"]),
        (status.remaining, ["ratelimit-remaining", "x-ratelimit-remaining"]),
        (status.reset_seconds, ["ratelimit-reset", "x-ratelimit-reset"]),
    ] {
        let value = HeaderValue::from(value);
        headers.insert(names[0], value.clone());
        headers.insert(names[1], value);
    }
    if !status.allowed {
        headers.insert(RETRY_AFTER, HeaderValue::from(status.reset_seconds));
    }
}
