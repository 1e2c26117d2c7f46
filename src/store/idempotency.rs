//! The table `idempotency_keys`: one row for each answered request with a key.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::timestamp::Timestamp;

use super::{StoreError, server};

/// The primary key of a record: the caller as text, and the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerKey {
    pub caller: String,
    pub key: String,
}

impl CallerKey {
    /// The tenant of the caller. Addresses belong to the public tenant.
    pub fn tenant_id(&self) -> &str {
        self.caller.strip_prefix("tenant:").unwrap_or(Tenant::PUBLIC)
    }
}

/// The part of a stored response that a replay needs.
#[derive(Clone, Debug)]
pub struct StoredResponse {
    pub fingerprint: Fingerprint,
    pub status: u16,
    /// The exact bytes that were sent; `None` for 204.
    pub response: Option<String>,
    /// The attempt that stored it.
    pub attempt_id: i64,
    pub expires_at: Timestamp,
    /// That of its tenant, when it was read.
    pub residence: Residence,
}

/// The part of a record that its caller may read.
#[derive(Clone, Debug)]
pub struct Record {
    pub method: String,
    pub path: String,
    pub status: i16,
    pub created_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    pub request_id: String,
}

/// The record under `key`, unless it has expired. Reads only from a writable server, so that a missing record is
/// certain.
pub async fn find(connection: &mut PgConnection, id: &CallerKey, now: Timestamp) -> Result<Option<Record>, StoreError> {
    let record = sqlx::query_as!(
        Record,
        "-- idempotency::find
        SELECT method, path, status, created_at, expires_at, request_id
        FROM idempotency_keys WHERE key = $1 AND caller = $2",
        id.key,
        id.caller,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if record.is_none() {
        server::check_writer(connection).await?;
    }
    Ok(record.filter(|record| Timestamp::from(record.expires_at) > now))
}

/// A whole record, for operators.
#[derive(Clone, Debug)]
pub struct FullRecord {
    pub record: Record,
    /// None for 204.
    pub response: Option<String>,
    /// Whether a request with the key is answered from it, as of PostgreSQL's clock.
    pub is_live: bool,
}

/// The caller's record under `key`, also one that has expired and is not deleted yet.
pub async fn find_full(connection: &mut PgConnection, id: &CallerKey) -> Result<Option<FullRecord>, StoreError> {
    let row = sqlx::query!(
        r#"-- idempotency::find_full
        SELECT method, path, status, created_at, expires_at, request_id, response, expires_at > now() AS "is_live!"
        FROM idempotency_keys WHERE key = $1 AND caller = $2"#,
        id.key,
        id.caller,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| FullRecord {
        record: Record {
            method: row.method,
            path: row.path,
            status: row.status,
            created_at: row.created_at,
            expires_at: row.expires_at,
            request_id: row.request_id,
        },
        response: row.response,
        is_live: row.is_live,
    }))
}
