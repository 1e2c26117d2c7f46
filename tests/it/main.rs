//! The service as its users meet it: real sockets, a real PostgreSQL.

mod admin;
mod agents;
mod batch;
mod billing;
mod compression;
mod config;
mod cors;
mod deliveries;
mod docs_page;
mod documents;
mod events;
mod exports;
mod faults;
mod growth;
mod health;
mod idempotency;
mod janitor;
mod local_postgres;
mod metrics;
mod model;
mod openapi;
mod pause;
mod rate_limit;

mod services;
mod support;
mod webhooks;
