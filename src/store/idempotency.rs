//! The table `idempotency_keys`: one row per answered request that carried a key.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::fingerprint::Fingerprint;
use crate::domain::timestamp::Timestamp;

use super::{StoreError, server};

/// The primary key of a record: the caller as text, and the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerKey {
    pub caller: String,
    pub key: String,
}

/// A stored answer, as far as a repeated request needs it.
#[derive(Clone, Debug)]
pub struct StoredReply {
    pub fingerprint: Fingerprint,
    pub status: u16,
    /// The exact bytes that were sent; none for 204.
    pub response: Option<String>,
    pub expires_at: Timestamp,
}

/// A record to be stored by `batch::write`, which also says when it was created.
#[derive(Clone, Debug)]
pub struct NewRecord<'a> {
    pub id: &'a CallerKey,
    pub method: &'a str,
    pub path: &'a str,
    pub fingerprint: Fingerprint,
    pub status: u16,
    pub response: Option<&'a str>,
    pub request_id: &'a str,
    pub expires_at: Timestamp,
}

/// What a client may ask about its own key.
#[derive(Clone, Debug)]
pub struct Record {
    pub method: String,
    pub path: String,
    pub status: i16,
    pub created_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    pub request_id: String,
}

/// Removes those of `ids` that have expired, to make room for their successors. May be committed by itself, because an
/// expired record counts as absent anyway; it then corrects the kept total, too. Otherwise whoever commits it does so, with
/// all other totals. Returns how many there were.
pub async fn remove_expired(
    connection: &mut PgConnection,
    ids: &[&CallerKey],
    now: Timestamp,
    by_itself: bool,
) -> Result<i64, StoreError> {
    let mut removed = 0;
    // One by one, which is rare enough: a list would leave the planner of an empty table a choice. So would the expiry
    // without IS TRUE, by its index.
    for id in ids {
        let result = sqlx::query!(
            "-- idempotency::remove_expired
            WITH removed AS (
                DELETE FROM idempotency_keys WHERE caller = $1 AND key = $2 AND (expires_at <= $3) IS TRUE
                RETURNING caller
            ), total AS (
                INSERT INTO tenant_totals AS total (tenant, shard, replies) SELECT '*', 0, -1 FROM removed WHERE $4
                ON CONFLICT (tenant, shard) DO UPDATE SET replies = total.replies + excluded.replies
            )
            INSERT INTO record_changes (kinds, owners, changes)
            SELECT ARRAY['caller_replies'], ARRAY[caller], ARRAY[-1] FROM removed",
            id.caller,
            id.key,
            now.to_date_time(),
            by_itself,
        )
        .execute(&mut *connection)
        .await?;
        removed += result.rows_affected() as i64;
    }
    Ok(removed)
}

/// The caller's own record under `key`, unless it has expired. None only where a writer says so.
pub async fn find(connection: &mut PgConnection, id: &CallerKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
    let record = sqlx::query_as!(
        Record,
        "-- idempotency::find
        SELECT method, path, status, created_at, expires_at, request_id
        FROM idempotency_keys WHERE caller = $1 AND key = $2",
        id.caller,
        id.key,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if record.is_none() {
        server::check_writer(connection).await?;
    }
    Ok(record.filter(|record| Timestamp::from(record.expires_at) > now))
}

/// What one pruning removed of one caller's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub caller: String,
    pub records: i64,
    /// Those of them that had not expired.
    pub live: i64,
}

/// Removes at most `records_max` expired records, the longest expired first. Records that a writer holds are left alone.
pub async fn prune_expired(
    connection: &mut PgConnection,
    now: Timestamp,
    records_max: i64,
) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- idempotency::prune_expired
        WITH removed AS (
            DELETE FROM idempotency_keys
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys WHERE expires_at <= $1
                ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))
            RETURNING caller
        )
        SELECT caller, count(*) AS "records!", 0::bigint AS "live!" FROM removed GROUP BY caller"#,
        now.to_date_time(),
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
    now: Timestamp,
    records_max: i64,
) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- idempotency::evict_oldest_of_caller
        WITH removed AS (
            DELETE FROM idempotency_keys
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys WHERE caller = $1
                ORDER BY caller, created_at LIMIT $3 FOR UPDATE SKIP LOCKED))
            RETURNING caller, expires_at > $2 AS live
        )
        SELECT caller, count(*) AS "records!", count(*) FILTER (WHERE live) AS "live!" FROM removed GROUP BY caller"#,
        caller,
        now.to_date_time(),
        records_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(removed)
}

/// Removes the `records_max` oldest records of all.
pub async fn evict_oldest(
    connection: &mut PgConnection,
    now: Timestamp,
    records_max: i64,
) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- idempotency::evict_oldest
        WITH removed AS (
            DELETE FROM idempotency_keys
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys
                ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))
            RETURNING caller, expires_at > $1 AS live
        )
        SELECT caller, count(*) AS "records!", count(*) FILTER (WHERE live) AS "live!" FROM removed GROUP BY caller"#,
        now.to_date_time(),
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
            "-- idempotency::oldest_expiry
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
