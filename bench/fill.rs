//! Fills a database as it would look after a long time. The rows come from the fill-*.sql beside this file: a change of
//! the schema changes those. Keys and indexes of the large tables are made after their rows, which takes a tenth of the time.

use std::time::Instant;

use sqlx::{PgConnection, Row};

use crate::{Result, postgres};

/// Tenants of both databases; load.lua draws one of their keys for each request.
pub const TENANTS: u32 = 100;

/// How many rows there are.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub pairs_per_tenant: u32,
    pub rows: u64,
}

impl Extent {
    /// 10 million keys, 10 million events and a million pairs at scale 1.
    pub fn new(scale: f64) -> Self {
        let per_tenant = |at_full_scale: f64| (at_full_scale * scale).round().max(1.0);
        Self { pairs_per_tenant: per_tenant(1e4) as u32, rows: per_tenant(1e5) as u64 * u64::from(TENANTS) }
    }
}

pub async fn tenants(connection: &mut PgConnection) -> Result<()> {
    script(connection, include_str!("fill-tenants.sql"), Extent { pairs_per_tenant: 0, rows: 0 }).await
}

pub async fn rows(connection: &mut PgConnection, extent: Extent) -> Result<()> {
    step("pairs", script(connection, include_str!("fill-pairs.sql"), extent)).await?;
    for (table, sql) in
        [("idempotency_keys", include_str!("fill-keys.sql")), ("events", include_str!("fill-events.sql"))]
    {
        let indexes = take_indexes(connection, table).await?;
        step(table, script(connection, sql, extent)).await?;
        for definition in indexes {
            step(&definition, postgres::run(connection, &definition)).await?;
        }
    }
    step("VACUUM ANALYZE", postgres::run(connection, "VACUUM ANALYZE")).await
}

async fn script(connection: &mut PgConnection, sql: &str, extent: Extent) -> Result<()> {
    let sql = sql
        .replace(":tenants", &TENANTS.to_string())
        .replace(":pairs", &extent.pairs_per_tenant.to_string())
        .replace(":rows", &extent.rows.to_string());
    postgres::run(connection, &sql).await
}

async fn step(name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let began = Instant::now();
    work.await?;
    eprintln!("filling: {name}: {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Drops the keys and indexes of a table, and gives the statements that make them again.
async fn take_indexes(connection: &mut PgConnection, table: &str) -> Result<Vec<String>> {
    let found = sqlx::query(
        "SELECT CASE WHEN con.oid IS NULL THEN format('DROP INDEX %s', index.indexrelid::regclass)
                     ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', index.indrelid::regclass, con.conname)
                END AS removal,
                CASE WHEN con.oid IS NULL THEN pg_get_indexdef(index.indexrelid)
                     ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', index.indrelid::regclass, con.conname,
                                 pg_get_constraintdef(con.oid))
                END AS definition
         FROM pg_index AS index
         LEFT JOIN pg_constraint AS con ON con.conindid = index.indexrelid AND con.contype IN ('p', 'u')
         WHERE index.indrelid = to_regclass($1)
         ORDER BY index.indisprimary DESC",
    )
    .bind(table)
    .fetch_all(&mut *connection)
    .await?;
    let mut definitions = Vec::new();
    for row in found {
        postgres::run(connection, row.try_get("removal")?).await?;
        definitions.push(row.try_get("definition")?);
    }
    Ok(definitions)
}
