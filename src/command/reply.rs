//! The results of commands. A response is serialised once; the stored bytes are the bytes that are sent.

use bytes::Bytes;
use serde::Serialize;

use crate::domain::refusal::Refusal;

/// A status and the exact bytes of a JSON body; no body with 204.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: Option<Bytes>,
}

impl Reply {
    pub fn json(status: u16, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("a reply is plain data");
        Self { status, body: Some(body.into()) }
    }

    pub const fn no_content() -> Self {
        Self { status: 204, body: None }
    }

    pub fn refusal(refusal: &Refusal, method: &str, path: &str, request_id: &str) -> Self {
        let body = refusal.to_body(method, path, request_id);
        Self { status: refusal.status_and_code().0, body: Some(body.into()) }
    }
}

/// The result of a submitted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was executed now.
    Fresh(Reply),
    /// It was executed before. This is the stored response.
    Replayed(Reply),
    /// It was not executed, and the refusal is not stored.
    Refused(Refusal),
}
