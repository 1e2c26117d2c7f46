//! The table `limits`: one row with the limits of the running system.

use sqlx::PgConnection;

use crate::domain::limits::Limits;

use super::StoreError;

pub async fn read(connection: &mut PgConnection) -> Result<Limits, StoreError> {
    let limits = sqlx::query_as!(
        Limits,
        "-- limits::read
        SELECT rate_limit_per_window, rate_limit_window_ms, bulk_max_items, event_log_cap, usage_store_max_keys,
               services_store_max_keys, webhook_store_max_keys, api_key_store_max_keys
        FROM limits",
    )
    .fetch_one(connection)
    .await?;
    Ok(limits)
}

/// Makes the transaction the only one that counts things of all tenants, until it ends.
pub async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("-- limits::lock\nSELECT only_row FROM limits FOR NO KEY UPDATE").fetch_one(connection).await?;
    Ok(())
}
