//! Conditional reads: a weak ETag, and 304 for clients that already have the response.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::command::Reply;

use crate::api::request::response::respond;

/// A response and its ETag.
#[derive(Clone, Debug)]
pub struct Tagged {
    reply: Reply,
    tag: String,
}

impl Tagged {
    /// `view` contains what distinguishes representations with equal bodies, such as filters and scope. It is empty if
    /// the body contains everything.
    pub fn new(reply: Reply, view: &str) -> Self {
        let tag = tag(reply.body.as_deref().unwrap_or_default(), view);
        Self { reply, tag }
    }

    /// The response, or 304 if the client has it.
    pub fn answer(self, headers: &HeaderMap) -> Response {
        let mut response =
            if is_known(headers, &self.tag) { StatusCode::NOT_MODIFIED.into_response() } else { respond(self.reply) };
        response.headers_mut().insert(header::ETAG, HeaderValue::from_str(&self.tag).expect("hexadecimal"));
        response
    }
}

/// Whether the client has the representation with this tag.
pub fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.into_iter().any(|known| matches(known, tag))
}

/// A tag of `body`. See [`Tagged::new`] for `view`.
pub fn tag(body: &[u8], view: &str) -> String {
    let digest = Sha256::new()
        .chain_update((view.len() as u64).to_be_bytes())
        .chain_update(view.as_bytes())
        .chain_update(body)
        .finalize();
    format!("W/\"{}\"", hex::encode(&digest[..16]))
}

/// Weak comparison (RFC 9110, section 8.8.3.2) with one field value: `*`, or a list of tags. Tags may contain commas.
fn matches(known: &str, tag: &str) -> bool {
    let bare = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let mut quoted = false;
    let mut entries = known.split(|character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    });
    entries.any(|entry| entry.trim() == "*" || bare(entry.trim()) == bare(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly_and_in_lists() {
        for known in ["W/\"a\"", "\"a\"", "*", "\"x\", W/\"a\"", " \"x\" ,\"a\" "] {
            assert!(matches(known, "W/\"a\""), "{known}");
        }
        for known in ["", "a", "\"A\"", "w/\"a\"", "\"x,*,y\"", "\"b\"", "\"x, W/\"a\"\""] {
            assert!(!matches(known, "W/\"a\""), "{known}");
        }
    }

    #[test]
    fn equal_bodies_under_different_views_differ() {
        assert_eq!(tag(b"{}", "x"), tag(b"{}", "x"));
        assert_ne!(tag(b"{}", "x"), tag(b"{}", "y"));
        assert_ne!(tag(b"{}", ""), tag(b"[]", ""));
        assert_ne!(tag(b"yz", "x"), tag(b"z", "xy"));
    }
}
