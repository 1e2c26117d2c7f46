//! The table `idempotency_keys`: one row per answered request that carried a key.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::fingerprint::Fingerprint;
use crate::domain::timestamp::Timestamp;

use super::{StoreError, corrupt};

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

/// A record to be stored.
#[derive(Clone, Debug)]
pub struct NewRecord<'a> {
    pub id: &'a CallerKey,
    pub method: &'a str,
    pub path: &'a str,
    pub fingerprint: Fingerprint,
    pub status: u16,
    pub response: Option<&'a str>,
    pub request_id: &'a str,
    pub created_at: Timestamp,
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

/// Finds the stored answers, expired ones included; the result has the order and length of `wanted`.
pub async fn recall(
    connection: &mut PgConnection,
    wanted: &[&CallerKey],
) -> Result<Vec<Option<StoredReply>>, StoreError> {
    let callers: Vec<&str> = wanted.iter().map(|id| id.caller.as_str()).collect();
    let keys: Vec<&str> = wanted.iter().map(|id| id.key.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- idempotency::recall
        SELECT wanted.position AS "position!", stored.request_hash AS "request_hash!", stored.status AS "status!",
               stored.response, stored.expires_at AS "expires_at!"
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (caller, key, position)
        CROSS JOIN LATERAL (
            SELECT request_hash, status, response::text AS response, expires_at
            FROM idempotency_keys
            WHERE idempotency_keys.caller = wanted.caller AND idempotency_keys.key = wanted.key
            LIMIT 1
        ) AS stored"#,
        callers as _,
        keys as _,
    )
    .fetch_all(connection)
    .await?;
    let mut replies = vec![None; wanted.len()];
    for row in rows {
        let hash: [u8; 32] = row.request_hash.try_into().map_err(|_| corrupt("request_hash"))?;
        let reply = StoredReply {
            fingerprint: Fingerprint(hash),
            status: u16::try_from(row.status).map_err(|_| corrupt("status"))?,
            response: row.response,
            expires_at: row.expires_at.into(),
        };
        *replies.get_mut(row.position as usize - 1).ok_or_else(|| corrupt("position"))? = Some(reply);
    }
    Ok(replies)
}

/// Removes those of `ids` that have expired, to make room for their successors. Returns those removed.
pub async fn remove_expired<'a>(
    connection: &mut PgConnection,
    ids: &[&'a CallerKey],
    now: Timestamp,
) -> Result<Vec<&'a CallerKey>, StoreError> {
    let mut removed = Vec::new();
    // Rare, and each by primary key: not worth a statement by list.
    for id in ids {
        let deleted = sqlx::query!(
            "-- idempotency::remove_expired
            DELETE FROM idempotency_keys WHERE caller = $1 AND key = $2 AND expires_at <= $3",
            id.caller,
            id.key,
            now.to_date_time(),
        )
        .execute(&mut *connection)
        .await?;
        if deleted.rows_affected() > 0 {
            removed.push(*id);
        }
    }
    Ok(removed)
}

/// Stores all records, which must be sorted by id. A record stored meanwhile by someone else is
/// [`KeyTaken`](super::FaultKind::KeyTaken).
pub async fn insert(connection: &mut PgConnection, records: &[NewRecord<'_>]) -> Result<(), StoreError> {
    let column = |read: fn(&NewRecord<'_>) -> String| records.iter().map(read).collect::<Vec<_>>();
    let callers: Vec<&str> = records.iter().map(|record| record.id.caller.as_str()).collect();
    let keys: Vec<&str> = records.iter().map(|record| record.id.key.as_str()).collect();
    let methods: Vec<&str> = records.iter().map(|record| record.method).collect();
    let paths: Vec<&str> = records.iter().map(|record| record.path).collect();
    let hashes: Vec<&[u8]> = records.iter().map(|record| record.fingerprint.0.as_slice()).collect();
    let statuses: Vec<i16> = records.iter().map(|record| record.status as i16).collect();
    let responses: Vec<Option<&str>> = records.iter().map(|record| record.response).collect();
    let request_ids: Vec<String> = column(|record| record.request_id.to_owned());
    let created: Vec<OffsetDateTime> = records.iter().map(|record| record.created_at.to_date_time()).collect();
    let expires: Vec<OffsetDateTime> = records.iter().map(|record| record.expires_at.to_date_time()).collect();
    sqlx::query!(
        "-- idempotency::insert
        INSERT INTO idempotency_keys
            (caller, key, method, path, request_hash, status, response, request_id, created_at, expires_at)
        SELECT caller, key, method, path, request_hash, status, response::json, request_id, created_at, expires_at
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::smallint[], $7::text[],
                    $8::text[], $9::timestamptz[], $10::timestamptz[])
            AS record (caller, key, method, path, request_hash, status, response, request_id, created_at, expires_at)",
        callers as _,
        keys as _,
        methods as _,
        paths as _,
        hashes as _,
        &statuses,
        responses as _,
        &request_ids,
        &created,
        &expires,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The caller's own record under `key`, unless it has expired.
pub async fn find(connection: &mut PgConnection, id: &CallerKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
    let record = sqlx::query_as!(
        Record,
        "-- idempotency::find
        SELECT method, path, status, created_at, expires_at, request_id
        FROM idempotency_keys WHERE caller = $1 AND key = $2",
        id.caller,
        id.key,
    )
    .fetch_optional(connection)
    .await?;
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

/// When the longest expired record expired, if any is left.
pub async fn oldest_expiry(connection: &mut PgConnection, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let oldest = sqlx::query_scalar!(
        "-- idempotency::oldest_expiry
        SELECT expires_at FROM idempotency_keys WHERE expires_at <= $1 ORDER BY expires_at LIMIT 1",
        now.to_date_time(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(oldest.map(Timestamp::from))
}
