//! What is removed from `idempotency_keys`: the expired, and what is over a cap. PostgreSQL's own clock decides.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;

use super::StoreError;

/// What one pruning removed of one caller's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub caller: String,
    pub records: i64,
    pub bytes: i64,
    /// Those of them that had not expired.
    pub live: i64,
}

/// Removes at most `records_max` expired records, the longest expired first. Records that a writer holds are left alone.
pub async fn prune_expired(connection: &mut PgConnection, records_max: i64) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- retention::prune_expired
        WITH removed AS (
            DELETE FROM idempotency_keys AS pruned
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys WHERE expires_at <= now()
                ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING caller, idempotency_key_bytes(pruned) AS bytes
        )
        SELECT caller, count(*) AS "records!", sum(bytes)::bigint AS "bytes!",
               0::bigint AS "live!" FROM removed GROUP BY caller"#,
        records_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(removed)
}

/// Removes the `records_max` oldest records of one caller.
pub async fn evict_oldest_of_caller(
    connection: &mut PgConnection,
    caller: &str,
    records_max: i64,
) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- retention::evict_oldest_of_caller
        WITH removed AS (
            DELETE FROM idempotency_keys AS pruned
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys WHERE caller = $1
                ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))
            RETURNING caller, idempotency_key_bytes(pruned) AS bytes, expires_at > now() AS live
        )
        SELECT caller, count(*) AS "records!", sum(bytes)::bigint AS "bytes!",
               count(*) FILTER (WHERE live) AS "live!" FROM removed GROUP BY caller"#,
        caller,
        records_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(removed)
}

/// Removes the `records_max` oldest records of all.
pub async fn evict_oldest(connection: &mut PgConnection, records_max: i64) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- retention::evict_oldest
        WITH removed AS (
            DELETE FROM idempotency_keys AS pruned
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys
                ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING caller, idempotency_key_bytes(pruned) AS bytes, expires_at > now() AS live
        )
        SELECT caller, count(*) AS "records!", sum(bytes)::bigint AS "bytes!",
               count(*) FILTER (WHERE live) AS "live!" FROM removed GROUP BY caller"#,
        records_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(removed)
}

/// How old an answer of [`OldestExpiry`] may be.
const OLDEST_EXPIRY_MS: i64 = 1000;

/// When the longest expired record that is left expired, as it was within the last second. An answer is remembered so
/// long: until the next vacuum an index keeps the entries of what was pruned, and each search passes over all of them.
#[derive(Debug, Default)]
pub struct OldestExpiry {
    /// The last answer, and when it was given.
    known: Mutex<Option<(Timestamp, Option<Timestamp>)>>,
}

impl OldestExpiry {
    pub async fn read(&self, connection: &mut PgConnection, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        if let Some((read_at, oldest)) = *self.known()
            && (0..OLDEST_EXPIRY_MS).contains(&(now.as_ms() - read_at.as_ms()))
        {
            return Ok(oldest);
        }
        let oldest = sqlx::query_scalar!(
            "-- retention::oldest_expiry
        SELECT expires_at FROM idempotency_keys WHERE expires_at <= $1 ORDER BY expires_at LIMIT 1",
            now.to_date_time(),
        )
        .fetch_optional(connection)
        .await?;
        let oldest = oldest.map(Timestamp::from);
        *self.known() = Some((now, oldest));
        Ok(oldest)
    }

    fn known(&self) -> MutexGuard<'_, Option<(Timestamp, Option<Timestamp>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
