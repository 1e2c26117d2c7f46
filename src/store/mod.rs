//! Every SQL statement. Functions take a connection and give domain values; they begin and end no transaction.
//! Lookups by list go through `CROSS JOIN LATERAL (… LIMIT 1)` and writes by list through `ON CONFLICT`:
//! neither leaves the planner a choice that could go wrong while a table is still empty.

pub mod agents;
pub mod api_keys;
pub mod audit;
pub mod caller_totals;
pub mod commit;
pub mod deliveries;
pub mod error;
pub mod events;
pub mod exports;
pub mod full_callers;
pub mod idempotency;
pub mod listener;
pub mod migrations;
pub mod outbox;
pub mod pool;
pub mod reset;
pub mod retention;
pub mod runtime_config;
pub mod server;
pub mod service_usage;
pub mod services;
pub mod settlements;
pub mod tenants;
pub mod totals;
pub mod usage;
pub mod webhook_queues;
pub mod webhooks;

pub use error::{Conflict, FaultKind, StoreError};

/// All migrations, embedded; sqlx-cli runs the same files.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// The error for a row that breaks a rule the database enforces: someone changed the schema by hand.
fn corrupt(what: &'static str) -> StoreError {
    StoreError::Corrupt(what)
}
