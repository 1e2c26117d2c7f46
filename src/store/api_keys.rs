//! The table `api_keys`: live keys, stored as SHA-256.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::api_key::ApiKeyInfo;
use crate::domain::caller::Tenant;
use crate::domain::identifiers::KeyPrefix;
use crate::domain::timestamp::StoredMoment;

use super::{StoreError, corrupt, server};

struct Row {
    prefix: String,
    label: String,
    created_at: OffsetDateTime,
    tenant_id: String,
}

impl From<Row> for ApiKeyInfo {
    fn from(row: Row) -> Self {
        Self { prefix: row.prefix, label: row.label, created_at: row.created_at.into(), tenant_id: row.tenant_id }
    }
}

/// What a live key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    pub prefix: KeyPrefix,
    pub tenant: Tenant,
}

/// Where a page of the list ends.
#[derive(Clone, Debug)]
pub struct ApiKeyCursor {
    pub created_at: StoredMoment,
    pub prefix: String,
}

/// Where a page of the list begins.
#[derive(Clone, Debug)]
pub enum Start {
    Offset(i64),
    After(ApiKeyCursor),
}

/// The live keys with these hashes, in their order. `None` for an unknown key.
pub async fn find_all(
    connection: &mut PgConnection,
    key_hashes: &[[u8; 32]],
) -> Result<Vec<Option<KnownKey>>, StoreError> {
    let key_hashes: Vec<&[u8]> = key_hashes.iter().map(<[u8; 32]>::as_slice).collect();
    let rows = sqlx::query!(
        r#"-- api_keys::find_all
        SELECT live.prefix AS "prefix?", live.tenant_id AS "tenant_id?"
        FROM unnest($1::bytea[]) WITH ORDINALITY AS wanted (key_hash, place)
        LEFT JOIN LATERAL (
            SELECT prefix, tenant_id FROM api_keys WHERE api_keys.key_hash = wanted.key_hash LIMIT 1
        ) AS live ON true
        ORDER BY place"#,
        key_hashes as _,
    )
    .fetch_all(&mut *connection)
    .await?;
    if rows.iter().any(|row| row.prefix.is_none()) {
        // A read-only server may not have all keys yet.
        server::check_writer(connection).await?;
    }
    let keys = rows.into_iter().map(|row| {
        let Some((prefix, tenant_id)) = row.prefix.zip(row.tenant_id) else { return Ok(None) };
        let prefix = KeyPrefix::from_stored(&prefix).ok_or_else(|| corrupt("api_keys.prefix"))?;
        Ok(Some(KnownKey { prefix, tenant: Tenant::from_stored(tenant_id) }))
    });
    keys.collect()
}

/// The number of live keys of all tenants. Counted, because `api_key_store_max_keys` bounds it.
pub async fn count(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- api_keys::count
        SELECT count(*) AS "count!" FROM api_keys"#
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

pub async fn prefix_exists(connection: &mut PgConnection, prefix: &str) -> Result<bool, StoreError> {
    let found = sqlx::query!("-- api_keys::prefix_exists\nSELECT prefix FROM api_keys WHERE prefix = $1", prefix)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

pub async fn insert(connection: &mut PgConnection, key: &ApiKeyInfo, key_hash: &[u8; 32]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- api_keys::insert
        INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at) VALUES ($1, $2, $3, $4, $5)",
        key.tenant_id,
        key.prefix,
        key_hash.as_slice(),
        key.label,
        key.created_at.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes the key with this prefix. Returns it, or `None` if there is no such key.
pub async fn delete(connection: &mut PgConnection, prefix: &str) -> Result<Option<ApiKeyInfo>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- api_keys::delete
        DELETE FROM api_keys WHERE prefix = $1 RETURNING prefix, label, created_at, tenant_id",
        prefix,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(ApiKeyInfo::from))
}

/// At most `limit` live keys by creation time and prefix, each with its cursor.
pub async fn list(
    connection: &mut PgConnection,
    start: &Start,
    limit: i64,
) -> Result<Vec<(ApiKeyCursor, ApiKeyInfo)>, StoreError> {
    let (offset, created_at, prefix) = match start {
        Start::Offset(offset) => (*offset, StoredMoment::FIRST, ""),
        Start::After(cursor) => (0, cursor.created_at, cursor.prefix.as_str()),
    };
    let rows = sqlx::query_as!(
        Row,
        "-- api_keys::list
        SELECT prefix, label, created_at, tenant_id FROM api_keys
        WHERE (created_at, prefix) > ($1, $2)
        ORDER BY created_at, prefix LIMIT $3 OFFSET $4",
        created_at.to_date_time(),
        prefix,
        limit,
        offset,
    )
    .fetch_all(connection)
    .await?;
    let keys = rows.into_iter().map(|row| {
        let cursor = ApiKeyCursor { created_at: row.created_at.into(), prefix: row.prefix.clone() };
        (cursor, ApiKeyInfo::from(row))
    });
    Ok(keys.collect())
}
