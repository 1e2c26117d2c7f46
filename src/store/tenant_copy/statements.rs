//! The statements of a copy, whose texts depend on the table: COPY, staging in a temporary table, merging, and sums.

use std::fmt;

use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::store::StoreError;

/// COPY sends one message per row. They are collected up to this size.
const BUFFER_BYTES: usize = 256 * 1024;

/// Called with the number of rows that were copied since the last call.
pub type Note<'a> = &'a (dyn Fn(u64) + Sync);

/// The number and the bytes of idempotency records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeySums {
    pub records: i64,
    pub bytes: i64,
}

impl KeySums {
    /// Of the only row of a query.
    pub fn of(mut rows: Vec<(String, String)>) -> Self {
        let (records, bytes) = rows.pop().unwrap_or_default();
        Self { records: records.parse().unwrap_or_default(), bytes: bytes.parse().unwrap_or_default() }
    }
}

impl fmt::Display for KeySums {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(text, "{} {}", self.records, self.bytes)
    }
}

/// Copies the rows of a query into a table.
pub(super) async fn copy(
    source: &mut PgConnection,
    target: &mut PgConnection,
    query: &str,
    table: &str,
    note: Note<'_>,
) -> Result<(), StoreError> {
    let mut rows = source.copy_out_raw(&format!("COPY ({query}) TO STDOUT")).await?;
    let mut sink = target.copy_in_raw(&format!("COPY {table} FROM STDIN")).await?;
    let (mut buffer, mut count) = (Vec::with_capacity(BUFFER_BYTES), 0);
    loop {
        let row = rows.try_next().await?;
        buffer.extend_from_slice(row.as_deref().unwrap_or_default());
        count += u64::from(row.is_some());
        if (row.is_none() && !buffer.is_empty()) || buffer.len() >= BUFFER_BYTES {
            sink.send(buffer.as_slice()).await?;
            note(std::mem::take(&mut count));
            buffer.clear();
        }
        if row.is_none() {
            sink.finish().await?;
            return Ok(());
        }
    }
}

/// Copies rows of a table into the temporary table `arriving_…` of the target.
pub(super) async fn stage(
    source: &mut PgConnection,
    target: &mut PgConnection,
    table: &str,
    condition: &str,
) -> Result<(), StoreError> {
    run(target, &format!("DROP TABLE IF EXISTS pg_temp.arriving_{table}")).await?;
    run(target, &format!("CREATE TEMPORARY TABLE arriving_{table} (LIKE {table}) ON COMMIT DROP")).await?;
    let query = format!("SELECT * FROM {table} WHERE {condition}");
    // Its rows are counted when they are merged.
    copy(source, target, &query, &format!("arriving_{table}"), &|_| {}).await?;
    // Without statistics, the planner chooses bad plans for a new table.
    run(target, &format!("ANALYZE arriving_{table}")).await
}

/// Inserts the rows of `arriving_…`. Rows that the table has already (`known`) are updated or left unchanged.
pub(super) async fn merge(target: &mut PgConnection, table: &str, on_conflict: &str) -> Result<u64, StoreError> {
    let insert = format!(
        "INSERT INTO {table} AS known OVERRIDING SYSTEM VALUE SELECT * FROM arriving_{table} ON CONFLICT {on_conflict}"
    );
    Ok(sqlx::raw_sql(AssertSqlSafe(insert)).execute(target).await?.rows_affected())
}

pub(super) async fn key_sums(
    connection: &mut PgConnection,
    table: &str,
    condition: &str,
) -> Result<KeySums, StoreError> {
    let bytes = "idempotency_record_bytes(caller, key, path, request_id, response)";
    let sql = format!(
        "SELECT count(*)::text AS name, coalesce(sum({bytes}), 0)::text AS sums FROM {table} WHERE {condition}"
    );
    Ok(KeySums::of(sums(connection, &sql).await?))
}

/// The rows of a query with two columns of text. Sorted, because parallel workers return a UNION in any order.
pub(super) async fn sums(connection: &mut PgConnection, sql: &str) -> Result<Vec<(String, String)>, StoreError> {
    let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await?;
    let text = |row: &PgRow, column| row.try_get::<Option<String>, _>(column).map(Option::unwrap_or_default);
    let sums = rows.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?)));
    let mut sums = sums.collect::<Result<Vec<_>, sqlx::Error>>()?;
    sums.sort_unstable();
    Ok(sums)
}

/// The only value that a query returns, as text.
pub(super) async fn text(connection: &mut PgConnection, sql: &str) -> Result<String, StoreError> {
    let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await?;
    Ok(row.try_get::<Option<String>, _>(0)?.unwrap_or_default())
}

pub(super) async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), StoreError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(())
}
