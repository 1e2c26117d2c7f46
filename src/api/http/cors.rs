//! CORS. Not by tower-http's layer, which answers preflights with 200, sends the allowed methods and headers with
//! preflights only, and compares origins as text: HTTP contract, section 4.2 asks for 204, all headers on every response, and
//! normalised origins.

use axum::http::Uri;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};

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

/// What a request's `Origin` calls for on its response.
#[derive(Clone, Debug)]
pub enum Origin {
    Absent,
    Foreign,
    /// The allowed origin, normalised.
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

/// `scheme://host[:port]` in lower case without a default port; none if it is no http(s) origin.
pub fn normalise(text: &str) -> Option<String> {
    let text = text.trim();
    // The parser drops a fragment, and takes an empty query or port for none.
    if text.contains(['?', '#', '@', '\\']) {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority = uri.authority()?;
    if uri.path() != "/" || authority.host().is_empty() {
        return None;
    }
    let host = authority.host().to_ascii_lowercase();
    let port: u16 = match authority.as_str().get(host.len()..)? {
        "" => default_port,
        port => port.strip_prefix(':')?.parse().ok()?,
    };
    Some(if port == default_port { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_in_one_spelling() {
        for (text, expected) in [
            ("https://Example.COM", Some("https://example.com")),
            (" HTTPS://example.com:443/ ", Some("https://example.com")),
            ("http://example.com:80", Some("http://example.com")),
            ("http://example.com:443", Some("http://example.com:443")),
            ("http://[::1]:3000", Some("http://[::1]:3000")),
            ("ftp://example.com", None),
            ("https://example.com/path", None),
            ("https://example.com//", None),
            ("https://example.com?q", None),
            ("https://example.com/#f", None),
            ("https://user@example.com", None),
            ("https://example.com:", None),
            ("https://example.com:99999", None),
            ("example.com", None),
            ("null", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(normalise(text).as_deref(), expected, "{text}");
        }
    }
}
