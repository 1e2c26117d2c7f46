//! The table `idempotency_keys`: one row per answered request that carried a key.

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
