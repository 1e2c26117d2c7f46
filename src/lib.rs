//! AgentPay Billing: exactly-once metering and settlement on PostgreSQL.
//!
//! A write travels from [`api`] to [`commit`], which decides it with [`command`] and commits it with [`store`]; a read from
//! [`api`] to [`query`], which asks [`store`]; [`jobs`] work in the background. [`domain`] holds the words they share. [`app`] puts them together.

pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod command;
pub mod commit;
pub mod domain;
pub mod full_callers;
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
