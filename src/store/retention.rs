//! Deletes rows of `idempotency_keys`: expired ones, and those of callers over a cap. The database's clock decides.

use sqlx::PgConnection;

use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::StoreError;
use super::remembered::Remembered;

/// The deleted records of one caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub caller: String,
    pub records: i64,
    pub bytes: i64,
}

/// Deletes at most `records_max` expired records, those that expired first. Skips records that a writer has locked.
pub async fn prune_expired(connection: &mut PgConnection, records_max: i64) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- retention::prune_expired
        WITH removed AS (
            DELETE FROM idempotency_keys
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys WHERE expires_at <= now()
                ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
            RETURNING caller, idempotency_record_bytes(caller, key, path, request_id, response) AS bytes
        )
        SELECT caller, count(*) AS "records!", sum(bytes)::bigint AS "bytes!" FROM removed GROUP BY caller"#,
        records_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(removed)
}

/// A record that may be evicted.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub caller: String,
    /// Its `ctid`, valid until the transaction ends.
    pub place: String,
    pub expires_at: StoredMoment,
    pub bytes: i64,
}

/// A range of records in the order of their expiry.
#[derive(Clone, Debug)]
pub struct Walked {
    /// All records that expire up to this time were read.
    pub end: StoredMoment,
    pub candidates: Vec<Candidate>,
}

/// Reads records that expire after `from` and not after `until`: `records_max` of them, and all others with the same
/// expiry as the last one. Returns those of `callers` that are older than `age_ms`.
pub async fn walk(
    connection: &mut PgConnection,
    from: StoredMoment,
    until: StoredMoment,
    callers: &[String],
    age_ms: i64,
    records_max: i64,
) -> Result<Walked, StoreError> {
    let walked = sqlx::query!(
        r#"-- retention::walk
        WITH walked AS MATERIALIZED (
            SELECT caller, ctid::text AS place, created_at, expires_at, idempotency_record_bytes(caller, key, path, request_id, response) AS bytes
            FROM idempotency_keys AS record WHERE expires_at > $1 AND expires_at <= $2
            ORDER BY expires_at FETCH FIRST $3 ROWS WITH TIES
        ), found AS (
            SELECT * FROM walked WHERE caller = ANY ($4) AND created_at <= now() - $5 * interval '1 ms'
        )
        SELECT (SELECT count(*) FROM walked) AS "walked!", (SELECT max(expires_at) FROM walked) AS walked_until,
               coalesce(array_agg(caller::text ORDER BY expires_at, place), '{}') AS "callers!",
               coalesce(array_agg(place ORDER BY expires_at, place), '{}') AS "places!",
               coalesce(array_agg(expires_at ORDER BY expires_at, place), '{}') AS "expiries!",
               coalesce(array_agg(bytes ORDER BY expires_at, place), '{}') AS "bytes!"
        FROM found"#,
        from.to_date_time(),
        until.to_date_time(),
        records_max,
        callers,
        age_ms as f64,
    )
    .fetch_one(connection)
    .await?;
    let end = walked.walked_until.filter(|_| walked.walked >= records_max).map_or(until, StoredMoment::from);
    let found = walked.callers.into_iter().zip(walked.places).zip(walked.expiries).zip(walked.bytes);
    let candidates = found.map(|(((caller, place), expires_at), bytes)| Candidate {
        caller,
        place,
        expires_at: expires_at.into(),
        bytes,
    });
    Ok(Walked { end, candidates: candidates.collect() })
}

/// Deletes the records at these places, which [`walk`] found in the same transaction. Checks the callers and the age again,
/// because another record may be at a place by now. Skips records that a writer has locked. IS TRUE prevents the planner
/// from using an index.
pub async fn evict(
    connection: &mut PgConnection,
    places: &[String],
    callers: &[String],
    age_ms: i64,
) -> Result<Vec<Removed>, StoreError> {
    let removed = sqlx::query_as!(
        Removed,
        r#"-- retention::evict
        WITH removed AS (
            DELETE FROM idempotency_keys
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM idempotency_keys
                WHERE ctid = ANY ($1::text[]::tid[]) AND (caller = ANY ($2)) IS TRUE
                  AND (created_at <= now() - $3 * interval '1 ms') IS TRUE
                FOR UPDATE SKIP LOCKED))
            RETURNING caller, idempotency_record_bytes(caller, key, path, request_id, response) AS bytes
        )
        SELECT caller, count(*) AS "records!", sum(bytes)::bigint AS "bytes!" FROM removed GROUP BY caller"#,
        places,
        callers,
        age_ms as f64,
    )
    .fetch_all(connection)
    .await?;
    Ok(removed)
}

/// Counts the expired records that are not deleted yet.
pub async fn count_expired(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- retention::count_expired
        SELECT count(*) AS "count!" FROM idempotency_keys WHERE expires_at <= now()"#,
    );
    Ok(count.fetch_one(connection).await?)
}

/// The expiry of the oldest expired record that is not deleted. The result is reused for a second: until the next
/// vacuum the index keeps the entries of deleted records, and each search reads them all.
#[derive(Debug)]
pub struct OldestExpiry(Remembered<Option<Timestamp>>);

impl Default for OldestExpiry {
    fn default() -> Self {
        Self(Remembered::for_ms(1000))
    }
}

impl OldestExpiry {
    pub async fn read(&self, connection: &mut PgConnection, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        if let Some(oldest) = self.0.at(now) {
            return Ok(oldest);
        }
        let oldest = sqlx::query_scalar!(
            "-- retention::read
            SELECT expires_at FROM idempotency_keys WHERE expires_at <= $1 ORDER BY expires_at LIMIT 1",
            now.to_date_time(),
        )
        .fetch_optional(connection)
        .await?;
        Ok(self.0.put(oldest.map(Timestamp::from), now))
    }
}
