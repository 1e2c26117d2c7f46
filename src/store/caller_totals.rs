//! The table `caller_totals`: how many records each caller has, and how large they are. Commits add to it in
//! `commit::write`.

use sqlx::PgConnection;

use super::StoreError;
use super::retention::Removed;

/// A caller and its records.
#[derive(Clone, Debug)]
pub struct CallerTotals {
    pub caller: String,
    pub records: i64,
    pub bytes: i64,
}

/// The callers with more than `records_max` records, the largest first, at most `callers_max` of them.
pub async fn over_cap(
    connection: &mut PgConnection,
    records_max: i64,
    callers_max: i64,
) -> Result<Vec<CallerTotals>, StoreError> {
    let callers = sqlx::query_as!(
        CallerTotals,
        r#"-- caller_totals::over_cap
        SELECT caller, sum(records)::bigint AS "records!", sum(bytes)::bigint AS "bytes!"
        FROM caller_totals GROUP BY caller HAVING sum(records) > $1::bigint
        ORDER BY sum(records) DESC LIMIT $2"#,
        records_max,
        callers_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(callers)
}

/// Records of all callers.
pub async fn records(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let records = sqlx::query_scalar!(
        r#"-- caller_totals::records
        SELECT coalesce(sum(records), 0)::bigint AS "records!" FROM caller_totals"#,
    )
    .fetch_one(connection)
    .await?;
    Ok(records)
}

/// Notes that records were removed.
pub async fn subtract(connection: &mut PgConnection, removed: &[Removed]) -> Result<(), StoreError> {
    if removed.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- caller_totals::subtract
        INSERT INTO caller_totals AS total (caller, shard, records, bytes)
        SELECT caller, 0, -records, -bytes
        FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS removed (caller, records, bytes)
        ORDER BY caller
        ON CONFLICT (caller, shard) DO UPDATE
        SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes",
        removed.iter().map(|removed| removed.caller.as_str()).collect::<Vec<_>>() as _,
        &removed.iter().map(|removed| removed.records).collect::<Vec<_>>(),
        &removed.iter().map(|removed| removed.bytes).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the totals of at most `callers_max` callers that have no records. Their rows are locked before they are added up:
/// a commit may add to them meanwhile.
pub async fn forget_empty(connection: &mut PgConnection, callers_max: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- caller_totals::forget_empty
        WITH idle AS (
            SELECT caller FROM caller_totals GROUP BY caller HAVING sum(records) = 0 AND sum(bytes) = 0 LIMIT $1
        ), locked AS (
            SELECT caller, shard, records, bytes FROM caller_totals WHERE caller IN (SELECT caller FROM idle)
            FOR UPDATE SKIP LOCKED
        ), empty AS (
            SELECT caller, array_agg(shard) AS shards FROM locked
            GROUP BY caller HAVING sum(records) = 0 AND sum(bytes) = 0
        )
        DELETE FROM caller_totals AS total USING empty
        WHERE total.caller = empty.caller AND total.shard = ANY (empty.shards)",
        callers_max,
    )
    .execute(connection)
    .await?;
    Ok(())
}
