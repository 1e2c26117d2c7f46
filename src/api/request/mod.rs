//! From a request to what a handler needs: who asks, what for, with which body and which key; and back to a response.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod caller;
pub(crate) mod context;
pub(crate) mod errors;
pub(crate) mod etag;
pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod keyless;
pub(crate) mod known_keys;
pub(crate) mod path;
pub(crate) mod pipeline;
pub(crate) mod query;
pub(crate) mod read;
pub(crate) mod response;
pub(crate) mod starting;
pub(crate) mod write;
