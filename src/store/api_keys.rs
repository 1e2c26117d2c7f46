//! The table `api_keys`: live keys, stored as SHA-256.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::api_key::{ApiKeyInfo, KeyLimits, Scopes};
use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;
use crate::domain::identifiers::KeyPrefix;
use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::{StoreError, corrupt, server};

struct Row {
    prefix: String,
    label: String,
    created_at: OffsetDateTime,
    tenant_id: String,
    scopes: Option<Vec<String>>,
    rate_limit_per_window: Option<i64>,
    expires_at: Option<OffsetDateTime>,
    overlap_until: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
}

impl Row {
    fn into_info(self) -> Result<ApiKeyInfo, StoreError> {
        let limits = KeyLimits {
            scopes: scopes(self.scopes.as_deref())?,
            expires_at: self.expires_at.into_iter().chain(self.overlap_until).min().map(Timestamp::from),
            rate_limit_per_window: self.rate_limit_per_window,
        };
        Ok(ApiKeyInfo {
            prefix: self.prefix,
            label: self.label,
            created_at: self.created_at.into(),
            tenant_id: self.tenant_id,
            limits,
            rotated: self.overlap_until.is_some(),
            last_used_at: self.last_used_at.map(Timestamp::from),
        })
    }
}

fn scopes(names: Option<&[String]>) -> Result<Option<Scopes>, StoreError> {
    let parse = |names: &[String]| Scopes::parse(names.iter().map(String::as_str));
    names.map(|names| parse(names).ok_or_else(|| corrupt("api_keys.scopes"))).transpose()
}

/// What a request with a live key may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    pub prefix: KeyPrefix,
    pub tenant: Tenant,
    /// Where the tenant lives. `None`: in the home cell.
    pub cell: Option<CellId>,
    /// `None`: everything that the tenant may do.
    pub scopes: Option<Scopes>,
    pub rate_limit_per_window: Option<i64>,
    /// How long it remains live. `None`: until it is revoked or rotated.
    pub lifetime: Option<Duration>,
    /// Its last use was not recorded for a minute.
    pub is_use_due: bool,
}

/// Where a page of the list ends.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        SELECT live.prefix AS "prefix?", live.tenant_id AS "tenant_id?", live.scopes, live.rate_limit_per_window,
               live.lifetime_ms, live.is_use_due AS "is_use_due?", residence.cell_id AS "cell_id?"
        FROM unnest($1::bytea[]) WITH ORDINALITY AS wanted (key_hash, place)
        LEFT JOIN LATERAL (
            SELECT prefix, tenant_id, scopes, rate_limit_per_window,
                   floor(extract(epoch FROM least(expires_at, overlap_until) - now()) * 1000)::bigint AS lifetime_ms,
                   (last_used_at > now() - interval '1 minute') IS NOT TRUE
                       AND NOT current_setting('transaction_read_only')::boolean AS is_use_due
            FROM api_keys
            WHERE api_keys.key_hash = wanted.key_hash AND (least(expires_at, overlap_until) <= now()) IS NOT TRUE
            LIMIT 1
        ) AS live ON true
        LEFT JOIN LATERAL (
            SELECT cell_id FROM tenant_cells WHERE tenant_cells.tenant_id = live.tenant_id LIMIT 1
        ) AS residence ON true
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
        Ok(Some(KnownKey {
            prefix: KeyPrefix::from_stored(&prefix).ok_or_else(|| corrupt("api_keys.prefix"))?,
            tenant: Tenant::from_stored(tenant_id),
            cell: row.cell_id.map(CellId::from_stored),
            scopes: scopes(row.scopes.as_deref())?,
            rate_limit_per_window: row.rate_limit_per_window,
            lifetime: row.lifetime_ms.map(|ms| Duration::from_millis(ms.unsigned_abs())),
            is_use_due: row.is_use_due.unwrap_or_default(),
        }))
    });
    keys.collect()
}

/// Records that keys were used, at most once a minute for each key. Rows that another transaction holds are left alone.
pub async fn note_used(connection: &mut PgConnection, prefixes: &[KeyPrefix]) -> Result<Vec<()>, StoreError> {
    let texts: Vec<&str> = prefixes.iter().map(KeyPrefix::as_str).collect();
    sqlx::query!(
        "-- api_keys::note_used
        UPDATE api_keys SET last_used_at = date_trunc('milliseconds', now())
        WHERE prefix IN (
            SELECT prefix FROM api_keys
            WHERE prefix = ANY ($1::text[]) AND (last_used_at > now() - interval '1 minute') IS NOT TRUE
            ORDER BY prefix FOR NO KEY UPDATE SKIP LOCKED)",
        texts as _,
    )
    .execute(connection)
    .await?;
    Ok(vec![(); prefixes.len()])
}

/// The number of live keys of all tenants. Counted, because `api_key_store_max_keys` bounds it.
pub async fn count(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- api_keys::count
        SELECT count(*) AS "count!" FROM api_keys WHERE (least(expires_at, overlap_until) <= now()) IS NOT TRUE"#
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
    let scopes: Option<Vec<&str>> = key.limits.scopes.map(Scopes::names);
    sqlx::query!(
        "-- api_keys::insert
        INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at, scopes, rate_limit_per_window, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        key.tenant_id,
        key.prefix,
        key_hash.as_slice(),
        key.label,
        key.created_at.to_date_time(),
        scopes as _,
        key.limits.rate_limit_per_window,
        key.limits.expires_at.map(Timestamp::to_date_time) as Option<OffsetDateTime>,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The live key with this prefix, or `None` if there is no such key. No other transaction changes it until this one ends.
pub async fn lock(connection: &mut PgConnection, prefix: &str) -> Result<Option<ApiKeyInfo>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- api_keys::lock
        SELECT prefix, label, created_at, tenant_id, scopes, rate_limit_per_window, expires_at, overlap_until, last_used_at
        FROM api_keys WHERE prefix = $1 AND (least(expires_at, overlap_until) <= now()) IS NOT TRUE
        FOR UPDATE",
        prefix,
    )
    .fetch_optional(connection)
    .await?;
    row.map(Row::into_info).transpose()
}

/// Like [`lock`], for a key that was rotated, even if its overlap has ended.
pub async fn lock_rotated(connection: &mut PgConnection, prefix: &str) -> Result<Option<ApiKeyInfo>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- api_keys::lock_rotated
        SELECT prefix, label, created_at, tenant_id, scopes, rate_limit_per_window, expires_at, overlap_until, last_used_at
        FROM api_keys WHERE prefix = $1 AND overlap_until IS NOT NULL AND (expires_at <= now()) IS NOT TRUE
        FOR UPDATE",
        prefix,
    )
    .fetch_optional(connection)
    .await?;
    row.map(Row::into_info).transpose()
}

/// Ends the key with this prefix at `until`, because another one replaces it. `None`: nothing replaces it any more.
pub async fn set_overlap(
    connection: &mut PgConnection,
    prefix: &str,
    until: Option<Timestamp>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- api_keys::set_overlap\nUPDATE api_keys SET overlap_until = $2 WHERE prefix = $1",
        prefix,
        until.map(Timestamp::to_date_time) as Option<OffsetDateTime>,
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn delete(connection: &mut PgConnection, prefix: &str) -> Result<(), StoreError> {
    sqlx::query!("-- api_keys::delete\nDELETE FROM api_keys WHERE prefix = $1", prefix).execute(connection).await?;
    Ok(())
}

/// Deletes expired keys, and subtracts them from the totals of their tenants.
pub async fn delete_expired(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- api_keys::delete_expired
        WITH expired AS (
            DELETE FROM api_keys WHERE prefix IN (
                SELECT prefix FROM api_keys WHERE least(expires_at, overlap_until) <= now()
                ORDER BY prefix FOR UPDATE SKIP LOCKED)
            RETURNING tenant_id
        )
        INSERT INTO totals AS total (tenant_id, service_id, shard, api_keys)
        SELECT tenant_id, '', 0, -count(*) FROM expired GROUP BY tenant_id ORDER BY tenant_id
        ON CONFLICT (tenant_id, service_id, shard) DO UPDATE SET api_keys = total.api_keys + excluded.api_keys",
    )
    .execute(connection)
    .await?;
    Ok(())
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
        SELECT prefix, label, created_at, tenant_id, scopes, rate_limit_per_window, expires_at, overlap_until, last_used_at
        FROM api_keys
        WHERE (created_at, prefix) > ($1, $2) AND (least(expires_at, overlap_until) <= now()) IS NOT TRUE
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
        Ok((cursor, row.into_info()?))
    });
    keys.collect()
}
