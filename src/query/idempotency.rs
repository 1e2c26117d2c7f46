//! Lookup of idempotency records.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::idempotency::{self, CallerKey, Record};

use super::reader::Reader;

/// The record of a key, unless it has expired.
pub async fn find(
    reader: &Reader,
    id: &CallerKey,
    now: Timestamp,
    deadline: Instant,
) -> Result<Option<Record>, Refusal> {
    let read = async |connection: &mut PgConnection| idempotency::find(connection, id, now).await;
    reader.read(deadline, read).await
}
