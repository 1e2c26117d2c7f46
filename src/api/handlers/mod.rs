//! Handlers, one file for each group of routes. A handler parses the request, submits a command or calls `query`, and
//! renders the response.

pub(crate) mod admin;
pub(crate) mod agents;
pub(crate) mod api_keys;
pub(crate) mod audit_log;
pub(crate) mod billing;
pub(crate) mod changelog;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod deep_health;
pub(crate) mod docs;
pub(crate) mod events;
pub(crate) mod exports;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod idempotency;
pub(crate) mod metrics;
pub(crate) mod service_usage;
pub(crate) mod services;
pub(crate) mod settle;
pub(crate) mod settlements;
pub(crate) mod stats;
pub(crate) mod tenants;
pub(crate) mod usage;
pub(crate) mod webhooks;
