//! The table `events`: what happened, per tenant, in order.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::timestamp::Timestamp;

use super::StoreError;

/// Draws the places of `count` events that are about to be appended, in ascending order.
pub async fn draw_positions(connection: &mut PgConnection, count: usize) -> Result<Vec<i64>, StoreError> {
    let mut positions = sqlx::query_scalar!(
        r#"-- events::draw_positions
        SELECT nextval('events_position_seq') AS "position!" FROM generate_series(1, $1::bigint)"#,
        count as i64,
    )
    .fetch_all(connection)
    .await?;
    positions.sort_unstable();
    Ok(positions)
}

/// Appends events of one moment, in the order given; at the places drawn for them, or, if there are none, at new ones.
pub async fn append(
    connection: &mut PgConnection,
    events: &[(Tenant, Event)],
    positions: &[i64],
    now: Timestamp,
) -> Result<(), StoreError> {
    let tenants: Vec<&str> = events.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let types: Vec<&str> = events.iter().map(|(_, event)| event.type_name()).collect();
    let payloads: Vec<String> =
        events.iter().map(|(_, event)| serde_json::to_string(event).expect("an event is plain data")).collect();
    sqlx::query!(
        "-- events::append
        INSERT INTO events (tenant, recorded_at, type, payload, position) OVERRIDING SYSTEM VALUE
        SELECT tenant, $1, type, payload::json, coalesce(position, nextval('events_position_seq'))
        FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) AS event (tenant, type, payload, position)",
        now.to_date_time() as OffsetDateTime,
        tenants as _,
        types as _,
        &payloads,
        positions,
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
