//! The table `limits`: one row with the limits of the running system, the pause flag, and two revisions by which
//! replicas see what changed. Who changes it also notifies the channel, which only makes replicas look sooner.

use sqlx::PgConnection;

use crate::domain::limits::{Controls, Limits};

use super::StoreError;

/// The channel of notifications that this row changed.
pub const CHANNEL: &str = "agentpay_controls";

pub async fn read(connection: &mut PgConnection) -> Result<Controls, StoreError> {
    let row = sqlx::query!(
        "-- limits::read
        SELECT rate_limit_per_window, rate_limit_window_ms, bulk_max_items, event_log_cap, usage_store_max_keys,
               services_store_max_keys, webhook_store_max_keys, api_key_store_max_keys, paused, revision, keys_revision
        FROM runtime_config",
    )
    .fetch_one(connection)
    .await?;
    let limits = Limits {
        rate_limit_per_window: row.rate_limit_per_window,
        rate_limit_window_ms: row.rate_limit_window_ms,
        bulk_max_items: row.bulk_max_items,
        event_log_cap: row.event_log_cap,
        usage_store_max_keys: row.usage_store_max_keys,
        services_store_max_keys: row.services_store_max_keys,
        webhook_store_max_keys: row.webhook_store_max_keys,
        api_key_store_max_keys: row.api_key_store_max_keys,
    };
    Ok(Controls { limits, paused: row.paused, revision: row.revision, keys_revision: row.keys_revision })
}

/// Makes the transaction the only one that counts things of all tenants or changes this row, until it ends.
pub async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("-- runtime_config::lock\nSELECT only_row FROM runtime_config FOR NO KEY UPDATE")
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Writes limits and pause flag, and tells all replicas.
pub async fn write(connection: &mut PgConnection, limits: &Limits, paused: bool) -> Result<(), StoreError> {
    sqlx::query!(
        "-- limits::write
        WITH told AS (SELECT pg_notify($10, ''))
        UPDATE runtime_config
        SET rate_limit_per_window = $1, rate_limit_window_ms = $2, bulk_max_items = $3, event_log_cap = $4,
            usage_store_max_keys = $5, services_store_max_keys = $6, webhook_store_max_keys = $7,
            api_key_store_max_keys = $8, paused = $9, revision = revision + 1
        FROM told",
        limits.rate_limit_per_window,
        limits.rate_limit_window_ms,
        limits.bulk_max_items,
        limits.event_log_cap,
        limits.usage_store_max_keys,
        limits.services_store_max_keys,
        limits.webhook_store_max_keys,
        limits.api_key_store_max_keys,
        paused,
        CHANNEL,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Tells all replicas that API keys were made or revoked.
pub async fn note_keys(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- limits::note_keys
        WITH told AS (SELECT pg_notify($1, ''))
        UPDATE runtime_config SET keys_revision = keys_revision + 1, revision = revision + 1 FROM told",
        CHANNEL,
    )
    .execute(connection)
    .await?;
    Ok(())
}
