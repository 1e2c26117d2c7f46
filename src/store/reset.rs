//! Emptying the database: the one list of all tables that hold a client's or a tenant's data. A table that is made later
//! belongs here, above every table it refers to.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection};

use super::StoreError;

/// In the order of deletion. `runtime_config` and the row `public` of `tenants` stay.
pub const TABLES: &[&str] = &[
    "settlements",
    "usage_counters",
    "agents",
    // In the order in which a dispatcher locks their rows.
    "outbox",
    "webhooks",
    "webhook_queues",
    "webhook_deliveries",
    "services",
    "event_runs",
    "api_keys",
    "idempotency_keys",
    "totals",
    "caller_totals",
    "full_callers",
];

/// How many rows were deleted per table.
#[derive(Clone, Debug, Default)]
pub struct Deleted(HashMap<&'static str, u64>);

impl Deleted {
    /// None were, of a table that does not exist.
    pub fn of(&self, table: &str) -> u64 {
        self.0.get(table).copied().unwrap_or(0)
    }
}

/// Deletes everything. Rows are deleted, not tables truncated: a reader in its snapshot must neither be held up nor see
/// half of it.
pub async fn delete_all(connection: &mut PgConnection) -> Result<Deleted, StoreError> {
    let mut deleted = Deleted::default();
    for table in TABLES {
        let statement = format!("-- reset::delete_all\nDELETE FROM {table}");
        let result = sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        deleted.0.insert(table, result.rows_affected());
    }
    sqlx::query!("-- reset::delete_all\nDELETE FROM tenants WHERE tenant_id <> 'public'")
        .execute(&mut *connection)
        .await?;
    Ok(deleted)
}

/// What a reset tells of and no deletion counts. Counts rows: nobody resets a large system.
#[derive(Clone, Copy, Debug)]
pub struct Inventory {
    pub services_with_metadata: i64,
    pub services_disabled: i64,
    /// Events that tenants can see: the newest of each.
    pub visible_events: i64,
}

pub async fn inventory(connection: &mut PgConnection, event_log_cap: i64) -> Result<Inventory, StoreError> {
    let inventory = sqlx::query_as!(
        Inventory,
        r#"-- reset::inventory
        SELECT (SELECT count(*) FROM services WHERE owner IS NOT NULL) AS "services_with_metadata!",
               (SELECT count(*) FROM services WHERE disabled) AS "services_disabled!",
               (SELECT coalesce(sum(least(log.events, $1)), 0)::bigint
                FROM (SELECT sum(events) AS events FROM event_runs GROUP BY tenant_id) AS log) AS "visible_events!""#,
        event_log_cap,
    )
    .fetch_one(connection)
    .await?;
    Ok(inventory)
}
