//! The service as its users meet it: real sockets, a real PostgreSQL.

mod agents;
mod batch;
mod billing;
mod deliveries;
mod events;
mod exports;
mod faults;
mod growth;
mod idempotency;
mod janitor;
mod local_postgres;
mod model;
mod readme;
mod services;
mod support;
mod webhooks;
