//! The service as its users meet it: real sockets, a real PostgreSQL.

mod billing;
mod commands;
mod connections;
mod faults;
mod growth;
mod idempotency;
mod janitor;
mod local_postgres;
mod model;
mod processes;
mod readme;
mod start_errors;
mod support;
mod unknown_outcome;
