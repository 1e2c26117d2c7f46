//! AgentPay Billing: exactly-once usage metering and settlement on PostgreSQL.
//!
//! A write goes from [`api`] to [`commit`], which decides it with [`command`] and commits it with [`store`]. A read
//! goes from [`api`] to [`query`], which uses [`store`]. [`jobs`] run in the background. [`domain`] has the types that
//! all of them share. [`app`] builds and starts the parts. docs/architecture.md describes the whole.

pub mod api;
pub mod app;
pub mod cell;
pub mod cli;
pub mod clock;
pub mod command;
pub mod commit;
pub mod domain;
pub mod full_callers;
pub mod history;
pub mod job_health;
pub mod jobs;
pub mod local_postgres;
pub mod metrics;
pub mod progress;
pub mod query;
pub mod runtime_config;
pub mod settings;
pub mod shutdown;
pub mod start;
pub mod store;
pub mod telemetry;
pub mod tls;
