//! Deletes all data. Contains the lists of all tables with data of clients and tenants, in the order of deletion. Add a
//! new table above the tables that it references.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{StoreError, verification};

/// Tables whose rows have a `tenant_id` and are in the cell of their tenant.
pub const TABLES_OF_TENANTS: [&str; 9] = [
    "settlements",
    "usage_counters",
    "agents",
    // The order in which a dispatcher locks their rows.
    "outbox",
    "webhooks",
    "webhook_queues",
    "webhook_deliveries",
    "services",
    "event_runs",
];

/// Tables of the home cell, tables of callers, and the totals, of which a part stays in the home cell.
const OTHER_TABLES: [&str; 7] =
    ["api_keys", "tenant_cells", "tenant_moves", "idempotency_keys", "totals", "caller_totals", "full_callers"];

/// All tables that are emptied. The rows of `runtime_config`, `verification` and `cells` and the tenant `public` stay. A reset is
/// refused where there are several cells.
pub fn tables() -> impl Iterator<Item = &'static str> {
    TABLES_OF_TENANTS.into_iter().chain(OTHER_TABLES)
}

/// The number of deleted rows for each table.
#[derive(Clone, Debug, Default)]
pub struct Deleted(HashMap<&'static str, u64>);

impl Deleted {
    /// 0 for a table that does not exist.
    pub fn of(&self, table: &str) -> u64 {
        self.0.get(table).copied().unwrap_or(0)
    }
}

/// Deletes all rows. TRUNCATE is not used, because it would block readers, and a reader in a snapshot would see empty
/// tables.
pub async fn delete_all(connection: &mut PgConnection) -> Result<Deleted, StoreError> {
    let mut deleted = Deleted::default();
    for table in tables() {
        let statement = format!("-- reset::delete_all\nDELETE FROM {table}");
        let result = sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        deleted.0.insert(table, result.rows_affected());
    }
    sqlx::query!("-- reset::delete_all\nDELETE FROM tenants WHERE tenant_id <> 'public'")
        .execute(&mut *connection)
        .await?;
    verification::forget(connection).await?;
    Ok(deleted)
}

/// Counts that a reset reports and that no deletion yields. They are counted, because nobody resets a large system.
#[derive(Clone, Copy, Debug)]
pub struct Inventory {
    pub services_with_metadata: i64,
    pub services_disabled: i64,
    /// Events that tenants can see.
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
