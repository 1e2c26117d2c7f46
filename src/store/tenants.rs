//! The table `tenants`: one row for each customer account.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::timestamp::Timestamp;

use super::StoreError;

pub async fn insert(
    connection: &mut PgConnection,
    tenant: &Tenant,
    residence: Residence,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tenants::insert\nINSERT INTO tenants (tenant_id, residence, created_at) VALUES ($1, $2, $3)",
        tenant.as_str(),
        residence.as_str(),
        now.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Draws a new revision after a service, a price, a flag or the presence of webhooks has changed. Commits that are
/// based on the old revision are decided again.
pub async fn renew_terms(connection: &mut PgConnection, tenant: &Tenant, revision: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tenants::renew_terms
        UPDATE tenants SET terms_revision = $2 WHERE tenant_id = $1",
        tenant.as_str(),
        revision,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Locks the tenant's row: until the transaction ends no other one changes or counts the tenant's objects. False if
/// there is no such tenant.
pub async fn lock(connection: &mut PgConnection, tenant: &Tenant) -> Result<bool, StoreError> {
    let row = sqlx::query!(
        "-- tenants::lock\nSELECT tenant_id FROM tenants WHERE tenant_id = $1 FOR NO KEY UPDATE",
        tenant.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Tenants after `after` in the order of their ids, at most `limit`.
pub async fn list(connection: &mut PgConnection, after: &str, limit: i64) -> Result<Vec<Tenant>, StoreError> {
    let ids = sqlx::query_scalar!(
        "-- tenants::list
        SELECT tenant_id FROM tenants WHERE tenant_id > $1 ORDER BY tenant_id LIMIT $2",
        after,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(Tenant::from_stored).collect())
}

pub async fn exists(connection: &mut PgConnection, tenant: &Tenant) -> Result<bool, StoreError> {
    let row = sqlx::query!("-- tenants::exists\nSELECT tenant_id FROM tenants WHERE tenant_id = $1", tenant.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}
