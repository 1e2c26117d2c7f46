//! Events that a webhook was not sent, because it was disabled or did not exist yet, as far back as the log reaches.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::delivery;
use crate::domain::timestamp::Timestamp;
use crate::domain::webhook::EVERY_TYPE;

use super::StoreError;
use super::webhook_queues::QueueId;

#[derive(Clone, Debug)]
pub struct MissedEvent {
    pub position: i64,
    pub recorded_at: OffsetDateTime,
    pub event_type: String,
    pub payload: String,
}

/// Which events a webhook was not sent for certain.
#[derive(Clone, Copy, Debug)]
pub struct Missed {
    /// Events that happened before are left out.
    pub since: Timestamp,
    /// The position from which the webhook gets events.
    pub from_position: i64,
    /// An event from then on that was delivered still has its delivery.
    pub kept_since: Timestamp,
    /// An event before was recorded when the webhook did not exist.
    pub created_at: Timestamp,
}

/// At most `events_max` events of these types, oldest first, that the webhook has missed. Those that have a delivery are left
/// out, and so are those since its creation whose delivery may have been deleted. Earlier events are found again once their
/// requested deliveries are deleted.
pub async fn find(
    connection: &mut PgConnection,
    queue: &QueueId,
    types: &[String],
    missed: Missed,
    events_max: i64,
) -> Result<Vec<MissedEvent>, StoreError> {
    let events = sqlx::query_as!(
        MissedEvent,
        r#"-- missed_events::find
        SELECT event.position AS "position!", run.recorded_at, run.type AS event_type, event.payload AS "payload!"
        FROM event_runs AS run
        CROSS JOIN LATERAL (
            SELECT run.position + number - 1 AS position, payload
            FROM string_to_table(run.payloads, E'\n') WITH ORDINALITY AS line (payload, number)
        ) AS event
        WHERE run.tenant_id = $1 AND run.position < $3 AND event.position < $3 AND run.recorded_at >= $4
          AND (run.recorded_at >= $8 OR run.recorded_at < $9)
          AND run.type <> 'webhook.test' AND (run.type = ANY ($5) OR $6 = ANY ($5))
          AND NOT EXISTS (
              SELECT FROM webhook_deliveries AS delivery
              WHERE delivery.tenant_id = $1 AND delivery.webhook_id = $2 AND delivery.event_position = event.position)
        ORDER BY run.position, event.position LIMIT $7"#,
        queue.tenant.as_str(),
        queue.webhook,
        missed.from_position,
        missed.since.to_date_time() as OffsetDateTime,
        types,
        EVERY_TYPE,
        events_max,
        missed.kept_since.to_date_time() as OffsetDateTime,
        missed.created_at.to_date_time() as OffsetDateTime,
    )
    .fetch_all(connection)
    .await?;
    Ok(events)
}

/// Adds a delivery of each event, due now. Returns how many were added.
pub async fn deliver(
    connection: &mut PgConnection,
    queue: &QueueId,
    events: &[MissedEvent],
    now: Timestamp,
) -> Result<i64, StoreError> {
    let ids = events
        .iter()
        .map(|event| delivery::id(&queue.tenant, &queue.webhook, event.recorded_at.into(), event.position))
        .collect::<Vec<_>>();
    let added = sqlx::query!(
        "-- missed_events::deliver
        INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, requested, next_attempt_at)
        SELECT $1, $2, position, delivery_id, recorded_at, type, payload::json, true, $8
        FROM unnest($3::bigint[], $4::text[], $5::timestamptz[], $6::text[], $7::text[])
            AS missed (position, delivery_id, recorded_at, type, payload)
        ON CONFLICT (tenant_id, webhook_id, event_position) DO NOTHING",
        queue.tenant.as_str(),
        queue.webhook,
        &events.iter().map(|event| event.position).collect::<Vec<_>>(),
        &ids,
        &events.iter().map(|event| event.recorded_at).collect::<Vec<_>>(),
        events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>() as _,
        events.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>() as _,
        now.to_date_time() as OffsetDateTime,
    )
    .execute(connection)
    .await?;
    Ok(added.rows_affected() as i64)
}
