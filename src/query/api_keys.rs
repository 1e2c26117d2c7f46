//! The API keys of all tenants.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::api_key::ApiKeyInfo;
use crate::domain::refusal::Refusal;
use crate::store::api_keys::{self, ApiKeyCursor, Start};

use super::page::Page;
use super::reader::Reader;

/// Live keys, oldest first, and their number.
pub async fn list(
    reader: &Reader,
    start: &Start,
    limit: i64,
    deadline: Instant,
) -> Result<(Page<(ApiKeyCursor, ApiKeyInfo)>, i64), Refusal> {
    let read = async |connection: &mut PgConnection| {
        let rows = api_keys::list(connection, start, limit + 1).await?;
        Ok((rows, api_keys::count(connection).await?))
    };
    let (rows, total) = reader.read(deadline, read).await?;
    Ok((Page::of(rows, limit), total))
}
