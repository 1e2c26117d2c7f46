//! The service as its users meet it: real sockets, a real PostgreSQL.

mod billing;
mod deliveries;
mod faults;
mod growth;
mod idempotency;
mod janitor;
mod local_postgres;
mod model;
mod readme;
mod support;
mod webhooks;
