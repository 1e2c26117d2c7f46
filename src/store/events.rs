//! The table `events`: what happened, per tenant, in order.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::timestamp::Timestamp;

use super::StoreError;

/// Appends events of one moment, in the order given.
pub async fn append(
    connection: &mut PgConnection,
    events: &[(Tenant, Event)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let tenants: Vec<&str> = events.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let types: Vec<&str> = events.iter().map(|(_, event)| event.type_name()).collect();
    let payloads: Vec<String> =
        events.iter().map(|(_, event)| serde_json::to_string(event).expect("an event is plain data")).collect();
    sqlx::query!(
        "-- events::append
        INSERT INTO events (tenant, recorded_at, type, payload)
        SELECT tenant, $1, type, payload::json
        FROM unnest($2::text[], $3::text[], $4::text[]) AS event (tenant, type, payload)",
        now.to_date_time() as OffsetDateTime,
        tenants as _,
        types as _,
        &payloads,
    )
    .execute(connection)
    .await?;
    Ok(())
}

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
