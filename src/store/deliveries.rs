//! The table `webhook_deliveries`, as dispatchers work on it and lists show it.
//! A dispatcher takes a row by moving `due_at` to the end of its lease; what it reports counts only while that is
//! still so. After a crash the lease runs out, and somebody else takes the row.
//! What works on many rows is planned anew each time: a plan kept from when the table was empty would scan it.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::delivery::Delivery;
use crate::domain::event::event_id;
use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::StoreError;

/// A delivery in a dispatcher's hands.
#[derive(Clone, Debug)]
pub struct Leased {
    pub tenant: Tenant,
    pub delivery: String,
    pub webhook: String,
    pub recorded_at: Timestamp,
    pub position: i64,
    pub event_type: String,
    pub payload: String,
    /// Attempts before this one.
    pub attempts: i16,
    /// End of the lease; none for a test, which is not leased.
    pub due_at: Option<Timestamp>,
}

struct LeasedRow {
    tenant: String,
    delivery: String,
    webhook: String,
    created_at: OffsetDateTime,
    event_position: i64,
    r#type: String,
    payload: String,
    attempts: i16,
    due_at: Option<OffsetDateTime>,
}

impl From<LeasedRow> for Leased {
    fn from(row: LeasedRow) -> Self {
        Self {
            tenant: Tenant::from_stored(row.tenant),
            delivery: row.delivery,
            webhook: row.webhook,
            recorded_at: row.created_at.into(),
            position: row.event_position,
            event_type: row.r#type,
            payload: row.payload,
            attempts: row.attempts,
            due_at: row.due_at.map(Timestamp::from),
        }
    }
}

/// What a dispatcher may take.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub now: Timestamp,
    /// End of the lease.
    pub until: Timestamp,
    /// The webhook after which to begin, by tenant and id, so that all get their turn.
    pub after: (&'a str, &'a str),
    /// Webhooks that have enough in flight.
    pub busy: &'a [String],
    pub of_webhook_max: i64,
    pub rows_max: i64,
}

/// Takes due deliveries, few of each webhook, so that a slow receiver cannot keep the others waiting.
/// Costs one index probe per webhook that has pending deliveries, and what it takes. For a transaction of
/// [`server::begin_lease`](super::server::begin_lease).
pub async fn lease(connection: &mut PgConnection, wish: &Wish<'_>) -> Result<Vec<Leased>, StoreError> {
    let rows = sqlx::query_as!(
        LeasedRow,
        r#"-- deliveries::lease
        WITH RECURSIVE waiting AS (
            (SELECT tenant, webhook FROM webhook_deliveries
             WHERE status = 'pending' AND (tenant, webhook) > ($3, $4)
             ORDER BY tenant, webhook LIMIT 1)
            UNION ALL
            SELECT following.tenant, following.webhook
            FROM waiting CROSS JOIN LATERAL (
                SELECT tenant, webhook FROM webhook_deliveries AS other
                WHERE status = 'pending' AND (other.tenant, other.webhook) > (waiting.tenant, waiting.webhook)
                ORDER BY tenant, webhook LIMIT 1
            ) AS following
        )
        UPDATE webhook_deliveries SET due_at = $2
        WHERE ctid = ANY (ARRAY(
            SELECT due.ctid
            FROM waiting CROSS JOIN LATERAL (
                SELECT ctid FROM webhook_deliveries AS candidate
                WHERE candidate.tenant = waiting.tenant AND candidate.webhook = waiting.webhook
                    AND candidate.status = 'pending' AND candidate.due_at <= $1
                ORDER BY candidate.due_at LIMIT $6
                FOR UPDATE SKIP LOCKED
            ) AS due
            WHERE waiting.webhook <> ALL ($5::text[])
            LIMIT $7))
        RETURNING tenant, delivery, webhook, created_at, event_position, type, payload::text AS "payload!", attempts,
                  due_at"#,
        wish.now.to_date_time(),
        wish.until.to_date_time(),
        wish.after.0,
        wish.after.1,
        wish.busy,
        wish.of_webhook_max,
        wish.rows_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Leased::from).collect())
}

/// A test's delivery, for the one attempt.
pub async fn find_test(
    connection: &mut PgConnection,
    tenant: &Tenant,
    delivery: &str,
) -> Result<Option<Leased>, StoreError> {
    let row = sqlx::query_as!(
        LeasedRow,
        r#"-- deliveries::find_test
        SELECT tenant, delivery, webhook, created_at, event_position, type, payload::text AS "payload!", attempts, due_at
        FROM webhook_deliveries
        WHERE tenant = $1 AND delivery = $2 AND type = 'webhook.test'"#,
        tenant.as_str(),
        delivery,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Leased::from))
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: &'static str,
    pub began_at: Timestamp,
    pub ended_at: Timestamp,
    /// Only while it stays pending.
    pub next_attempt_at: Option<Timestamp>,
    pub response_status: Option<u16>,
    pub error: Option<String>,
}

/// Notes the end of an attempt. False if the lease was lost, or the delivery cancelled meanwhile.
pub async fn record(connection: &mut PgConnection, leased: &Leased, ended: &Ended) -> Result<bool, StoreError> {
    let is_pending = ended.next_attempt_at.is_some();
    let updated = sqlx::query!(
        "-- deliveries::record
        UPDATE webhook_deliveries
        SET status = $4, attempts = attempts + 1, last_attempt_at = $5, next_attempt_at = $6, due_at = $6,
            response_status = $7, error = $8, finished_at = $9
        WHERE tenant = $1 AND delivery = $2 AND due_at IS NOT DISTINCT FROM $3",
        leased.tenant.as_str(),
        leased.delivery,
        leased.due_at.map(Timestamp::to_date_time) as Option<OffsetDateTime>,
        ended.status,
        ended.began_at.to_date_time(),
        ended.next_attempt_at.map(Timestamp::to_date_time) as Option<OffsetDateTime>,
        ended.response_status.map(|status| status as i16),
        ended.error.as_deref(),
        (!is_pending).then(|| ended.ended_at.to_date_time()) as Option<OffsetDateTime>,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() > 0)
}

/// Cancels what is pending for a webhook. Returns how many deliveries that were.
pub async fn cancel_of_webhook(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    now: Timestamp,
) -> Result<i64, StoreError> {
    let cancelled = sqlx::query!(
        "-- deliveries::cancel_of_webhook
        UPDATE webhook_deliveries
        SET status = 'cancelled', next_attempt_at = NULL, due_at = NULL, finished_at = $3
        WHERE tenant = $1 AND webhook = $2 AND status = 'pending'",
        tenant.as_str(),
        webhook,
        now.to_date_time(),
    )
    .persistent(false)
    .execute(connection)
    .await?;
    Ok(cancelled.rows_affected() as i64)
}

/// Drops pending deliveries of a webhook, at most `rows_max`.
pub async fn drop_of_webhook(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    rows_max: i64,
) -> Result<i64, StoreError> {
    let dropped = sqlx::query!(
        "-- deliveries::drop_of_webhook
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries WHERE tenant = $1 AND webhook = $2 AND status = 'pending'
            LIMIT $3 FOR UPDATE SKIP LOCKED))",
        tenant.as_str(),
        webhook,
        rows_max,
    )
    .persistent(false)
    .execute(connection)
    .await?;
    Ok(dropped.rows_affected() as i64)
}

/// Deletes deliveries that finished before `moment`, the oldest first, at most `rows_max`.
pub async fn prune(connection: &mut PgConnection, moment: Timestamp, rows_max: i64) -> Result<i64, StoreError> {
    let pruned = sqlx::query!(
        "-- deliveries::prune
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

/// Place of a delivery in its webhook's list.
#[derive(Clone, Debug)]
pub struct Place {
    pub created_at: StoredMoment,
    pub position: i64,
    /// Decides where positions repeat. Empty: before all of that position.
    pub delivery: String,
}

/// A webhook's deliveries, the newest first, those older than `before`, at most `limit`.
pub async fn list(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    before: Option<Place>,
    limit: i64,
) -> Result<Vec<(Place, Delivery)>, StoreError> {
    let start = || Place { created_at: StoredMoment::LAST, position: i64::MAX, delivery: String::new() };
    let before = before.unwrap_or_else(start);
    let rows = sqlx::query!(
        "-- deliveries::list
        SELECT delivery, created_at, event_position, type, status, attempts, last_attempt_at, next_attempt_at,
               response_status, error
        FROM webhook_deliveries
        WHERE tenant = $1 AND webhook = $2 AND (created_at, event_position, delivery) < ($3, $4, $5)
        ORDER BY tenant DESC, webhook DESC, created_at DESC, event_position DESC, delivery DESC LIMIT $6",
        tenant.as_str(),
        webhook,
        before.created_at.to_date_time(),
        before.position,
        before.delivery,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let deliveries = rows.into_iter().map(|row| {
        let created_at = Timestamp::from(row.created_at);
        let place =
            Place { created_at: row.created_at.into(), position: row.event_position, delivery: row.delivery.clone() };
        let delivery = Delivery {
            id: row.delivery,
            event_id: event_id(created_at, row.event_position).to_string(),
            event_type: row.r#type,
            status: row.status,
            attempts: row.attempts,
            created_at,
            last_attempt_at: row.last_attempt_at.map(Timestamp::from),
            next_attempt_at: row.next_attempt_at.map(Timestamp::from),
            response_status: row.response_status,
            error: row.error,
        };
        (place, delivery)
    });
    Ok(deliveries.collect())
}

/// Pending deliveries of all tenants, and since when the one that waits longest is due. Reads them all.
pub async fn backlog(connection: &mut PgConnection) -> Result<(i64, Option<Timestamp>), StoreError> {
    let row = sqlx::query!(
        r#"-- deliveries::backlog
        SELECT count(*) AS "pending!", min(next_attempt_at) AS oldest FROM webhook_deliveries WHERE status = 'pending'"#,
    )
    .fetch_one(connection)
    .await?;
    Ok((row.pending, row.oldest.map(Timestamp::from)))
}
