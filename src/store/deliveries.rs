//! Reads of `webhook_deliveries` beside those of its [queue](super::delivery_queue): lists, counts and the backlog.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::delivery::{self, Delivery};
use crate::domain::event::event_id;
use crate::domain::timestamp::Timestamp;
use crate::domain::webhook::EVERY_TYPE;

use super::StoreError;
use super::webhook_queues::QueueId;

/// The backlog is counted up to this many rows in each table.
const COUNTED_MAX: i64 = 10_000;

/// Maximum number of outbox events that one page of a webhook's list reads.
const UNEXPANDED_MAX: i64 = 1000;

struct Row {
    tenant_id: String,
    webhook_id: String,
    event_position: i64,
    /// `None` for an event that is not expanded yet.
    delivery_id: Option<String>,
    created_at: OffsetDateTime,
    r#type: String,
    status: String,
    attempts: i16,
    last_attempt_at: Option<OffsetDateTime>,
    next_attempt_at: Option<OffsetDateTime>,
    response_status: Option<i16>,
    error: Option<String>,
}

impl From<Row> for (QueueId, Delivery) {
    fn from(row: Row) -> Self {
        let queue = QueueId { tenant: Tenant::from_stored(row.tenant_id), webhook: row.webhook_id };
        let (created_at, position) = (Timestamp::from(row.created_at), row.event_position);
        let new_id = || delivery::id(&queue.tenant, &queue.webhook, created_at, position);
        let delivery = Delivery {
            id: row.delivery_id.unwrap_or_else(new_id),
            event_id: event_id(created_at, position).to_string(),
            event_type: row.r#type,
            status: row.status,
            attempts: row.attempts,
            created_at,
            last_attempt_at: row.last_attempt_at.map(Timestamp::from),
            next_attempt_at: row.next_attempt_at.map(Timestamp::from),
            response_status: row.response_status,
            error: row.error,
        };
        (queue, delivery)
    }
}

/// At most `limit` deliveries of a webhook before the position `before`, newest events first, each with its position.
/// An event that is not expanded yet is shown as its delivery will be.
pub async fn list(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    before: i64,
    limit: i64,
) -> Result<Vec<(i64, Delivery)>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- deliveries::list
        SELECT $1 AS "tenant_id!", $2 AS "webhook_id!", event_position AS "event_position!", delivery_id, created_at AS "created_at!", type AS "type!",
               status AS "status!", attempts AS "attempts!", last_attempt_at, next_attempt_at, response_status, error
        FROM (
            (SELECT event_position, delivery_id, created_at, type, status, attempts, last_attempt_at, next_attempt_at,
                    response_status, error
             FROM webhook_deliveries
             WHERE tenant_id = $1 AND webhook_id = $2 AND event_position < $3
             ORDER BY tenant_id DESC, webhook_id DESC, event_position DESC LIMIT $4)
            UNION ALL
            (SELECT position, NULL, recorded_at, type, 'pending', 0::smallint, NULL, recorded_at, NULL, NULL
             FROM webhooks AS target
             CROSS JOIN LATERAL (
                 SELECT position, recorded_at, type, last_webhook_id FROM outbox
                 WHERE outbox.tenant_id = $1 AND position < $3 AND position >= target.from_position
                 ORDER BY outbox.tenant_id DESC, position DESC LIMIT $5
             ) AS event
             WHERE target.tenant_id = $1 AND target.webhook_id = $2 AND target.disabled_at IS NULL
                AND event.last_webhook_id < $2 AND (event.type = ANY (target.events) OR $6 = ANY (target.events)))
        ) AS delivery
        ORDER BY event_position DESC LIMIT $4"#,
        tenant.as_str(),
        webhook,
        before,
        limit,
        UNEXPANDED_MAX,
        EVERY_TYPE,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.event_position, <(QueueId, Delivery)>::from(row).1)).collect())
}

/// Which deliveries a command shows. All given conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub tenant: Option<Tenant>,
    pub webhook: Option<String>,
    pub status: Option<&'static str>,
    pub since: Option<Timestamp>,
}

/// At most `limit` deliveries with their webhooks, newest events first. Reads all deliveries of the tenant of `filter`. Omits
/// events that are not expanded yet.
pub async fn find_all(
    connection: &mut PgConnection,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<(QueueId, Delivery)>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- deliveries::find_all
        SELECT tenant_id, webhook_id, event_position, delivery_id AS "delivery_id?", created_at, type, status, attempts, last_attempt_at,
               next_attempt_at, response_status, error
        FROM webhook_deliveries
        WHERE ($1::text IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR webhook_id = $2)
            AND ($3::text IS NULL OR status = $3) AND created_at >= $4
        ORDER BY created_at DESC, event_position DESC, tenant_id, webhook_id LIMIT $5"#,
        filter.tenant.as_ref().map(Tenant::as_str),
        filter.webhook.as_deref(),
        filter.status,
        filter.since.unwrap_or(Timestamp::from_ms(0)).to_date_time(),
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Row::into).collect())
}

/// Counts the deliveries that [`delivery_queue::prune`](super::delivery_queue::prune) deletes.
pub async fn count_finished_before(connection: &mut PgConnection, moment: Timestamp) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- deliveries::count_finished_before
        SELECT count(*) AS "count!" FROM webhook_deliveries WHERE finished_at < $1"#,
        moment.to_date_time(),
    );
    Ok(count.fetch_one(connection).await?)
}

/// The deliveries of all tenants that are not sent yet.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Pending deliveries, and events that are not expanded yet. At most 10 000 of each are counted.
    pub pending: i64,
    /// Since when the oldest counted delivery is due.
    pub oldest_due_at: Option<Timestamp>,
}

pub async fn backlog(connection: &mut PgConnection) -> Result<Backlog, StoreError> {
    let row = sqlx::query!(
        r#"-- deliveries::backlog
        SELECT deliveries.pending + events.pending AS "pending!", least(deliveries.oldest, events.oldest) AS oldest
        FROM (
            SELECT count(*) AS pending, min(next_attempt_at) AS oldest
            FROM (
                SELECT next_attempt_at FROM webhook_deliveries WHERE status = 'pending'
                ORDER BY tenant_id, webhook_id, next_attempt_at LIMIT $1
            ) AS counted
        ) AS deliveries
        CROSS JOIN (
            SELECT count(*) AS pending, min(recorded_at) AS oldest
            FROM (SELECT recorded_at FROM outbox ORDER BY tenant_id, position LIMIT $1) AS counted
        ) AS events"#,
        COUNTED_MAX,
    )
    .fetch_one(connection)
    .await?;
    Ok(Backlog { pending: row.pending, oldest_due_at: row.oldest.map(Timestamp::from) })
}
