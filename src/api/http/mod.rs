//! The transport: connections, their limits, and what every response has whatever was asked.

pub(crate) mod activity;
pub(crate) mod admission;
pub(crate) mod bodies;
pub(crate) mod client_socket;
pub(crate) mod compression;
pub(crate) mod connection;
pub(crate) mod cors;
pub(crate) mod head;
pub(crate) mod headers;
pub mod limits;
pub(crate) mod rate_limit;
pub(crate) mod refused_head;
pub(crate) mod server;
