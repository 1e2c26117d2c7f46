//! The table `tenants`: one row per account.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;

use super::StoreError;

pub async fn insert(connection: &mut PgConnection, tenant: &Tenant, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tenants::insert\nINSERT INTO tenants (tenant, created_at) VALUES ($1, $2)",
        tenant.as_str(),
        now.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes the transaction the only one that counts this tenant's things, until it ends. False if there is no such tenant.
pub async fn lock(connection: &mut PgConnection, tenant: &Tenant) -> Result<bool, StoreError> {
    let row = sqlx::query!(
        "-- tenants::lock\nSELECT tenant FROM tenants WHERE tenant = $1 FOR NO KEY UPDATE",
        tenant.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}
