//! From a request to what a handler needs: who asks, what for, with which body and which key.

pub(crate) mod body;
pub(crate) mod caller;
pub(crate) mod etag;
pub(crate) mod exchange;
pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod keyless;
pub(crate) mod known_keys;
pub(crate) mod pipeline;
pub(crate) mod query;
pub(crate) mod starting;
