//! CORS. tower-http's layer is not used: it answers preflights with 200, sends the allowed methods and headers with
//! preflights only, and compares origins as text. HTTP contract, section 4.2, requires 204, all headers on every
//! response, and normalised origins.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};

use crate::settings::origin::normalise;

const FIXED: [(HeaderName, &str); 4] = [
    (ACCESS_CONTROL_ALLOW_METHODS, "GET,POST,PUT,PATCH,DELETE,OPTIONS"),
    (ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type,X-Request-Id,X-API-Key,Idempotency-Key,If-None-Match"),
    (
        ACCESS_CONTROL_EXPOSE_HEADERS,
        "X-Request-Id,Idempotency-Replayed,RateLimit-Limit,RateLimit-Remaining,RateLimit-Reset,X-RateLimit-Limit,\
         X-RateLimit-Remaining,X-RateLimit-Reset,Retry-After,ETag,Content-Disposition",
    ),
    (ACCESS_CONTROL_MAX_AGE, "86400"),
];

/// How the response treats the `Origin` of a request.
#[derive(Clone, Debug)]
pub enum Origin {
    Absent,
    Foreign,
    /// An allowed origin, normalised.
    Allowed(HeaderValue),
}

impl Origin {
    pub fn of(request: &HeaderMap, allowed: &[String]) -> Self {
        let Some(origin) = request.get(ORIGIN) else { return Self::Absent };
        if allowed.is_empty() {
            return Self::Foreign;
        }
        let origin = origin.to_str().ok().and_then(normalise).filter(|origin| allowed.contains(origin));
        origin.and_then(|origin| HeaderValue::from_str(&origin).ok()).map_or(Self::Foreign, Self::Allowed)
    }

    pub fn add_headers(self, response: &mut HeaderMap) {
        if matches!(self, Self::Absent) {
            return;
        }
        response.append(VARY, HeaderValue::from_static("Origin"));
        if let Self::Allowed(origin) = self {
            response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            for (name, value) in FIXED {
                response.insert(name, HeaderValue::from_static(value));
            }
        }
    }
}
