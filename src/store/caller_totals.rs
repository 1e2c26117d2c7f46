//! The table `caller_totals`: the number and size of the idempotency records of each caller. A commit adds to one of a
//! caller's rows, in `commit::write`. Only the sum over the rows is meaningful; a single row may be negative.

use sqlx::PgConnection;

use super::retention::Removed;
use super::{StoreError, totals};

/// The row that the janitor subtracts from, so that no commit waits for it.
const JANITOR_SHARD: i16 = totals::SHARDS;

/// The totals of one caller.
#[derive(Clone, Debug)]
pub struct CallerTotal {
    pub caller: String,
    pub records: i64,
    pub bytes: i64,
}

/// The number of records of all callers.
pub async fn records(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let records = sqlx::query_scalar!(
        r#"-- caller_totals::records
        SELECT coalesce(sum(records), 0)::bigint AS "records!" FROM caller_totals"#
    );
    Ok(records.fetch_one(connection).await?)
}

/// The largest number of records for which all callers together keep at most `records_max`, if no caller keeps more
/// than that number. `None` if there are not more than `records_max` records.
pub async fn level(connection: &mut PgConnection, records_max: i64) -> Result<Option<i64>, StoreError> {
    let level = sqlx::query_scalar!(
        r#"-- caller_totals::level
        WITH counted AS (
            SELECT sum(records) AS records FROM caller_totals GROUP BY caller HAVING sum(records) > 0
        ), ranked AS (
            SELECT records, sum(records) OVER smaller - records AS below,
                   count(*) OVER () - row_number() OVER smaller + 1 AS sharers
            FROM counted
            WINDOW smaller AS (ORDER BY records ROWS UNBOUNDED PRECEDING)
        )
        SELECT floor(($1::bigint - below) / sharers)::bigint AS "level!" FROM ranked
        WHERE floor(($1::bigint - below) / sharers) < records ORDER BY records LIMIT 1"#,
        records_max,
    );
    Ok(level.fetch_optional(connection).await?)
}

/// At most `callers_max` callers with more than `records_max` records or `bytes_max` bytes, those with the most records
/// first.
pub async fn over(
    connection: &mut PgConnection,
    records_max: i64,
    bytes_max: i64,
    callers_max: i64,
) -> Result<Vec<CallerTotal>, StoreError> {
    let callers = sqlx::query_as!(
        CallerTotal,
        r#"-- caller_totals::over
        SELECT caller, sum(records)::bigint AS "records!", sum(bytes)::bigint AS "bytes!"
        FROM caller_totals GROUP BY caller HAVING sum(records) > $1::bigint OR sum(bytes) > $2::bigint
        ORDER BY sum(records) DESC, caller LIMIT $3"#,
        records_max,
        bytes_max,
        callers_max,
    );
    Ok(callers.fetch_all(connection).await?)
}

/// Subtracts deleted records, in the transaction that deleted them.
pub async fn subtract(connection: &mut PgConnection, removed: &[Removed]) -> Result<(), StoreError> {
    if removed.is_empty() {
        return Ok(());
    }
    let callers: Vec<&str> = removed.iter().map(|removed| removed.caller.as_str()).collect();
    let records: Vec<i64> = removed.iter().map(|removed| removed.records).collect();
    let bytes: Vec<i64> = removed.iter().map(|removed| removed.bytes).collect();
    sqlx::query!(
        "-- caller_totals::subtract
        INSERT INTO caller_totals AS total (caller, shard, records, bytes)
        SELECT caller, $1, -records, -bytes
        FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS removed (caller, records, bytes) ORDER BY caller
        ON CONFLICT (caller, shard) DO UPDATE
        SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes",
        JANITOR_SHARD,
        callers as _,
        &records,
        &bytes,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the totals of at most `callers_max` callers without records. The rows are locked before they are added up,
/// because a commit may add to them.
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
