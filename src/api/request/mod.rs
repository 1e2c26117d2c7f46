//! Turns an HTTP request into what a handler needs: caller, route, body and idempotency key. Turns results into
//! responses.

pub(crate) mod answer;
pub mod body;
pub(crate) mod caller;
pub(crate) mod context;
pub mod cursors;
pub(crate) mod errors;
pub(crate) mod etag;
pub(crate) mod fields;
pub mod forwarded;
pub(crate) mod keyless;
pub(crate) mod known_keys;
pub(crate) mod path;
pub(crate) mod pipeline;
pub mod query;
pub(crate) mod read;
pub(crate) mod response;
pub(crate) mod starting;
pub(crate) mod write;
