//! All SQL statements. Functions take a connection and return domain values. Most of them neither begin nor end a
//! transaction. Lookups by list use `CROSS JOIN LATERAL (… LIMIT 1)` and writes by list use `ON CONFLICT`, so that the
//! planner has no choice that could be wrong while a table is still empty.

pub mod address;
pub mod agents;
pub mod api_keys;
pub mod audit;
pub mod audit_log;
pub mod caller_totals;
pub mod cells;
pub mod citus;
pub mod commit;
pub mod deliveries;
pub mod delivery_queue;
pub mod directory;
pub mod error;
pub mod events;
pub mod exports;
pub mod full_callers;
pub mod idempotency;
pub mod listener;
pub mod migrations;
pub mod missed_events;
pub mod outbox;
pub mod pool;
pub mod positions;
pub mod redeliveries;
pub mod remembered;
pub mod reset;
pub mod retention;
pub mod roles;
pub mod runtime_config;
pub mod server;
pub mod service_usage;
pub mod services;
pub mod settlements;
pub mod tenant_copy;
pub mod tenant_moves;
pub mod tenants;
pub mod totals;
pub mod usage;
pub mod verification;
pub mod webhook_queues;
pub mod webhook_secrets;
pub mod webhooks;

pub use error::{Conflict, FaultKind, StoreError};

/// All migrations, embedded. sqlx-cli runs the same files.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// The error for a row that violates a rule of the schema: somebody has changed the schema manually.
fn corrupt(what: &'static str) -> StoreError {
    StoreError::Corrupt(what)
}
