//! The transport: connections, their limits, and the headers of every response.

pub(crate) mod activity;
pub(crate) mod admission;
pub(crate) mod bodies;
pub(crate) mod client_socket;
pub(crate) mod compression;
pub(crate) mod connection;
pub(crate) mod cors;
pub(crate) mod current_router;
pub(crate) mod head;
pub(crate) mod header_names;
pub(crate) mod headers;
pub(crate) mod rate_limit;
pub(crate) mod received;
pub(crate) mod refused_head;
pub(crate) mod server;
