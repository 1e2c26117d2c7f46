//! The table `events`: what happened, per tenant, in order. Batches append to it, in `batch::write`.

use sqlx::PgConnection;

use super::StoreError;

/// Deletes a tenant's `events_max` oldest events. Returns how many there were to delete.
pub async fn delete_oldest(connection: &mut PgConnection, tenant: &str, events_max: i64) -> Result<i64, StoreError> {
    let deleted = sqlx::query!(
        "-- events::delete_oldest
        DELETE FROM events WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM events WHERE tenant = $1 ORDER BY tenant, position LIMIT $2))",
        tenant,
        events_max,
    )
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() as i64)
}
