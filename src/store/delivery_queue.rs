//! The table `webhook_deliveries` as a queue: one event for one webhook. A dispatcher works on the deliveries of webhooks
//! that it has leased (`webhook_queues`), in transactions of [`server::begin_dispatch`](super::server::begin_dispatch).

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;
use crate::domain::trace_context::TraceContext;

use super::StoreError;
use super::webhook_queues::QueueId;

/// A delivery to attempt.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub queue: QueueId,
    pub position: i64,
    pub id: String,
    pub recorded_at: Timestamp,
    pub event_type: String,
    pub payload: String,
    /// Number of attempts before this one.
    pub attempts: i16,
    /// Sent even if its event is before `from_position`.
    pub is_requested: bool,
    /// Of the request that caused the event. None: traces were off.
    pub trace: Option<TraceContext>,
}

struct OutgoingRow {
    tenant_id: String,
    webhook_id: String,
    event_position: i64,
    delivery_id: String,
    created_at: OffsetDateTime,
    r#type: String,
    payload: String,
    attempts: i16,
    requested: bool,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl From<OutgoingRow> for Outgoing {
    fn from(row: OutgoingRow) -> Self {
        Self {
            queue: QueueId { tenant: Tenant::from_stored(row.tenant_id), webhook: row.webhook_id },
            position: row.event_position,
            id: row.delivery_id,
            recorded_at: row.created_at.into(),
            event_type: row.r#type,
            payload: row.payload,
            attempts: row.attempts,
            is_requested: row.requested,
            trace: row.traceparent.map(|traceparent| TraceContext { traceparent, tracestate: row.tracestate }),
        }
    }
}

/// A delivery of an event in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery<'a> {
    pub position: i64,
    pub webhook: &'a str,
    pub id: String,
}

/// Inserts deliveries that are due at once. Existing ones are not changed. Returns how many were inserted.
pub async fn insert(
    connection: &mut PgConnection,
    tenant: &Tenant,
    deliveries: &[NewDelivery<'_>],
    now: Timestamp,
) -> Result<u64, StoreError> {
    let inserted = sqlx::query!(
        "-- delivery_queue::insert
        INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, next_attempt_at,
             traceparent, tracestate)
        SELECT $1, added.webhook_id, added.position, added.delivery_id, event.recorded_at, event.type, event.payload,
               least(event.recorded_at, $5), event.traceparent, event.tracestate
        FROM unnest($2::bigint[], $3::text[], $4::text[]) AS added (position, webhook_id, delivery_id)
        CROSS JOIN LATERAL (
            SELECT recorded_at, type, payload, traceparent, tracestate FROM outbox
            WHERE outbox.tenant_id = $1 AND outbox.position = added.position
            LIMIT 1
        ) AS event
        ON CONFLICT (tenant_id, webhook_id, event_position) DO NOTHING",
        tenant.as_str(),
        &deliveries.iter().map(|delivery| delivery.position).collect::<Vec<_>>(),
        deliveries.iter().map(|delivery| delivery.webhook).collect::<Vec<_>>() as _,
        deliveries.iter().map(|delivery| delivery.id.as_str()).collect::<Vec<_>>() as _,
        now.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected())
}

/// The delivery of a test.
#[derive(Clone, Debug)]
pub struct Test<'a> {
    pub tenant: &'a Tenant,
    pub webhook: &'a str,
    pub id: &'a str,
    pub position: i64,
    pub payload: &'a str,
    pub trace: Option<TraceContext>,
}

/// Inserts the delivery of a test. No dispatcher attempts it; the handler of the test does. It counts as failed until
/// its result is recorded, which remains correct if the process ends before that.
pub async fn insert_test(connection: &mut PgConnection, test: &Test<'_>, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query!(
        "-- delivery_queue::insert_test
        INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, status, error, finished_at,
             traceparent, tracestate)
        VALUES ($1, $2, $3, $4, $5, 'webhook.test', ($6::text)::json, 'failed', 'no attempt was completed', $5, $7, $8)",
        test.tenant.as_str(),
        test.webhook,
        test.position,
        test.id,
        now.to_date_time(),
        test.payload,
        test.trace.as_ref().map(|trace| trace.traceparent.as_str()),
        test.trace.as_ref().and_then(|trace| trace.tracestate.as_deref()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The delivery of a test, for its attempt. It is among the webhook's newest.
pub async fn find_test(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    id: &str,
) -> Result<Option<Outgoing>, StoreError> {
    let row = sqlx::query_as!(
        OutgoingRow,
        r#"-- delivery_queue::find_test
        SELECT tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload::text AS "payload!", attempts,
               requested, traceparent, tracestate
        FROM webhook_deliveries
        WHERE tenant_id = $1 AND webhook_id = $2 AND delivery_id = $3 AND type = 'webhook.test'
        ORDER BY tenant_id DESC, webhook_id DESC, event_position DESC LIMIT 1"#,
        tenant.as_str(),
        webhook,
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Outgoing::from))
}

/// Due deliveries of these webhooks, at most `of_webhook_max` of each, those due longest first.
pub async fn due(
    connection: &mut PgConnection,
    queues: &[QueueId],
    now: Timestamp,
    of_webhook_max: i64,
) -> Result<Vec<Outgoing>, StoreError> {
    let rows = sqlx::query_as!(
        OutgoingRow,
        r#"-- delivery_queue::due
        SELECT due.tenant_id AS "tenant_id!", due.webhook_id AS "webhook_id!", due.event_position AS "event_position!",
               due.delivery_id AS "delivery_id!", due.created_at AS "created_at!", due.type AS "type!",
               due.payload::text AS "payload!", due.attempts AS "attempts!", due.requested AS "requested!", due.traceparent,
               due.tracestate
        FROM unnest($1::text[], $2::text[]) AS queue (tenant_id, webhook_id)
        CROSS JOIN LATERAL (
            SELECT * FROM webhook_deliveries AS delivery
            WHERE delivery.tenant_id = queue.tenant_id AND delivery.webhook_id = queue.webhook_id
                AND delivery.status = 'pending' AND delivery.next_attempt_at <= $3
            ORDER BY delivery.tenant_id, delivery.webhook_id, delivery.next_attempt_at LIMIT $4
        ) AS due"#,
        queues.iter().map(|queue| queue.tenant.as_str()).collect::<Vec<_>>() as _,
        queues.iter().map(|queue| queue.webhook.as_str()).collect::<Vec<_>>() as _,
        now.to_date_time(),
        of_webhook_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Outgoing::from).collect())
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended<'a> {
    pub queue: &'a QueueId,
    pub position: i64,
    pub status: &'static str,
    pub began_at: Timestamp,
    pub ended_at: Timestamp,
    /// Present only if it stays pending.
    pub next_attempt_at: Option<Timestamp>,
    pub response_status: Option<u16>,
    pub error: Option<String>,
}

/// Records results of attempts. Deliveries that were cancelled in the meantime are not changed.
pub async fn record(connection: &mut PgConnection, ended: &[&Ended<'_>]) -> Result<(), StoreError> {
    let next = ended.iter().map(|ended| ended.next_attempt_at.map(Timestamp::to_date_time));
    let finished = ended.iter().map(|ended| ended.next_attempt_at.is_none().then(|| ended.ended_at.to_date_time()));
    sqlx::query!(
        "-- delivery_queue::record
        UPDATE webhook_deliveries AS delivery
        SET status = ended.status, attempts = attempts + 1, last_attempt_at = ended.began_at,
            next_attempt_at = ended.next_attempt_at, response_status = ended.response_status, error = ended.error,
            finished_at = ended.finished_at
        FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[], $6::timestamptz[],
                    $7::smallint[], $8::text[], $9::timestamptz[])
            AS ended (tenant_id, webhook_id, position, status, began_at, next_attempt_at, response_status, error,
                      finished_at)
        WHERE delivery.tenant_id = ended.tenant_id AND delivery.webhook_id = ended.webhook_id
            AND delivery.event_position = ended.position
            AND (delivery.status = 'pending' OR delivery.type = 'webhook.test')",
        ended.iter().map(|ended| ended.queue.tenant.as_str()).collect::<Vec<_>>() as _,
        ended.iter().map(|ended| ended.queue.webhook.as_str()).collect::<Vec<_>>() as _,
        &ended.iter().map(|ended| ended.position).collect::<Vec<_>>(),
        ended.iter().map(|ended| ended.status).collect::<Vec<_>>() as _,
        &ended.iter().map(|ended| ended.began_at.to_date_time()).collect::<Vec<_>>(),
        next.collect::<Vec<_>>() as _,
        ended.iter().map(|ended| ended.response_status.map(|status| status as i16)).collect::<Vec<_>>() as _,
        ended.iter().map(|ended| ended.error.as_deref()).collect::<Vec<_>>() as _,
        finished.collect::<Vec<_>>() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Cancels at most `rows_max` pending deliveries of a webhook, of events before `position`. Requested deliveries are cancelled
/// only if `position` is `i64::MAX`.
pub async fn cancel_before(
    connection: &mut PgConnection,
    queue: &QueueId,
    position: i64,
    now: Timestamp,
    rows_max: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- delivery_queue::cancel_before
        UPDATE webhook_deliveries SET status = 'cancelled', next_attempt_at = NULL, finished_at = $4
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries
            WHERE tenant_id = $1 AND webhook_id = $2 AND status = 'pending' AND event_position < $3
                AND (NOT requested OR $3 = 9223372036854775807)
            ORDER BY tenant_id, webhook_id, next_attempt_at LIMIT $5 FOR UPDATE))",
        queue.tenant.as_str(),
        queue.webhook,
        position,
        now.to_date_time(),
        rows_max,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes at most `rows_max` pending deliveries of a webhook.
pub async fn drop_of_webhook(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    rows_max: i64,
) -> Result<i64, StoreError> {
    let dropped = sqlx::query!(
        "-- delivery_queue::drop_of_webhook
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries WHERE tenant_id = $1 AND webhook_id = $2 AND status = 'pending'
            ORDER BY tenant_id, webhook_id, next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED))",
        tenant.as_str(),
        webhook,
        rows_max,
    )
    .persistent(false)
    .execute(connection)
    .await?;
    Ok(dropped.rows_affected() as i64)
}

/// Deletes at most `rows_max` deliveries that finished before `moment`, oldest first.
pub async fn prune(connection: &mut PgConnection, moment: Timestamp, rows_max: i64) -> Result<i64, StoreError> {
    let pruned = sqlx::query!(
        "-- delivery_queue::prune
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries WHERE finished_at < $1
            ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        moment.to_date_time(),
        rows_max,
    )
    .persistent(false)
    .execute(connection)
    .await?;
    Ok(pruned.rows_affected() as i64)
}
