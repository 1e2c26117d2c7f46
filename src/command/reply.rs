//! What a command is answered. The stored reply is the sent reply: serialised once, kept and sent as these bytes.

use bytes::Bytes;
use serde::Serialize;

use crate::domain::refusal::Refusal;

/// A status and the exact bytes of a JSON body; none with 204.
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

/// What a submitted request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Executed now.
    Fresh(Reply),
    /// Executed before: the stored reply.
    Replayed(Reply),
    /// Not executed, and not kept.
    Refused(Refusal),
}
