//! The service as its users meet it: real sockets, a real PostgreSQL.

mod agents;
mod batch;
mod billing;
mod bodies;
mod commands;
mod connections;
mod constraints;
mod documents;
mod events;
mod exports;
mod faults;
mod growth;
mod http_rules;
mod idempotency;
mod janitor;
mod janitor_cost;
mod local_postgres;
mod logs;
mod model;
mod processes;
mod readme;
mod refusals;
mod services;
mod start_errors;
mod support;
mod unknown_outcome;
