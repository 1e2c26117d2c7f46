//! The table `runtime_config`: one row with the limits, the pause flag, and two revisions by which replicas detect
//! changes. A write also sends a notification, so that replicas read the row sooner.

use sqlx::PgConnection;

use crate::domain::runtime_config::{Limits, RuntimeConfig};

use super::StoreError;

/// The channel of notifications about changes.
pub const CHANNEL: &str = "agentpay_runtime_config";

pub async fn read(connection: &mut PgConnection) -> Result<RuntimeConfig, StoreError> {
    let row = sqlx::query!(
        "-- runtime_config::read
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
    Ok(RuntimeConfig { limits, paused: row.paused, revision: row.revision, keys_revision: row.keys_revision })
}

/// Serialises transactions that change this row or count rows of all tenants.
pub async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("-- runtime_config::lock\nSELECT only_row FROM runtime_config FOR NO KEY UPDATE")
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Writes the limits and the pause flag, and notifies all replicas.
pub async fn write(connection: &mut PgConnection, limits: &Limits, paused: bool) -> Result<(), StoreError> {
    sqlx::query!(
        "-- runtime_config::write
        WITH notified AS (SELECT pg_notify($10, ''))
        UPDATE runtime_config
        SET rate_limit_per_window = $1, rate_limit_window_ms = $2, bulk_max_items = $3, event_log_cap = $4,
            usage_store_max_keys = $5, services_store_max_keys = $6, webhook_store_max_keys = $7,
            api_key_store_max_keys = $8, paused = $9, revision = revision + 1
        FROM notified",
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

/// Notifies all replicas that API keys were created or revoked.
pub async fn note_keys(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- runtime_config::note_keys
        WITH notified AS (SELECT pg_notify($1, ''))
        UPDATE runtime_config SET keys_revision = keys_revision + 1, revision = revision + 1 FROM notified",
        CHANNEL,
    )
    .execute(connection)
    .await?;
    Ok(())
}
