//! The table `api_keys`: live keys, stored as SHA-256.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::{StoreError, server};

/// A live key, without the secret.
#[derive(Clone, Debug)]
pub struct ApiKeyRow {
    pub prefix: String,
    pub label: String,
    pub created_at: OffsetDateTime,
    pub tenant_id: String,
}

/// Where a page of the list begins.
#[derive(Clone, Debug)]
pub enum Start {
    Offset(i64),
    After { created_at: StoredMoment, prefix: String },
}

/// The tenants of the live keys with these hashes, in their order. `None` for an unknown key.
pub async fn tenants_of(
    connection: &mut PgConnection,
    key_hashes: &[[u8; 32]],
) -> Result<Vec<Option<Tenant>>, StoreError> {
    let key_hashes: Vec<&[u8]> = key_hashes.iter().map(<[u8; 32]>::as_slice).collect();
    let tenants = sqlx::query_scalar!(
        r#"-- api_keys::tenants_of
        SELECT live.tenant_id AS "tenant_id?"
        FROM unnest($1::bytea[]) WITH ORDINALITY AS wanted (key_hash, place)
        LEFT JOIN LATERAL (
            SELECT tenant_id FROM api_keys WHERE api_keys.key_hash = wanted.key_hash LIMIT 1
        ) AS live ON true
        ORDER BY place"#,
        key_hashes as _,
    )
    .fetch_all(&mut *connection)
    .await?;
    if tenants.iter().any(Option::is_none) {
        // A read-only server may not have all keys yet.
        server::check_writer(connection).await?;
    }
    Ok(tenants.into_iter().map(|tenant| tenant.map(Tenant::from_stored)).collect())
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

pub async fn insert(
    connection: &mut PgConnection,
    tenant: &Tenant,
    prefix: &str,
    key_hash: &[u8; 32],
    label: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- api_keys::insert
        INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at) VALUES ($1, $2, $3, $4, $5)",
        tenant.as_str(),
        prefix,
        key_hash.as_slice(),
        label,
        now.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes the key with this prefix. Returns its tenant, or `None` if there is no such key.
pub async fn delete(connection: &mut PgConnection, prefix: &str) -> Result<Option<Tenant>, StoreError> {
    let tenant =
        sqlx::query_scalar!("-- api_keys::delete\nDELETE FROM api_keys WHERE prefix = $1 RETURNING tenant_id", prefix,)
            .fetch_optional(connection)
            .await?;
    Ok(tenant.map(Tenant::from_stored))
}

/// At most `limit` live keys by creation time and prefix.
pub async fn list(connection: &mut PgConnection, start: &Start, limit: i64) -> Result<Vec<ApiKeyRow>, StoreError> {
    let (offset, created_at, prefix) = match start {
        Start::Offset(offset) => (*offset, StoredMoment::FIRST, ""),
        Start::After { created_at, prefix } => (0, *created_at, prefix.as_str()),
    };
    let rows = sqlx::query_as!(
        ApiKeyRow,
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
    Ok(rows)
}
