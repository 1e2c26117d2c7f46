//! The table `webhook_deliveries`: deliveries that are sent again on request.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::StoreError;
use super::deliveries::Filter;
use super::webhook_queues::QueueId;

/// Selects finished deliveries that are sent again. Tests are never selected: the request of a test attempts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resend {
    /// These, in any state.
    Deliveries(Vec<String>),
    /// Those that failed or were cancelled at this moment or later. A failure disables the webhook, which cancels the others:
    /// the first ones at once, the rest when they are due. Those count as well.
    FailedSince(Timestamp),
}

impl Resend {
    /// The ids, if any, and the moment, as parameters of a statement.
    fn parameters(&self) -> (Option<&[String]>, OffsetDateTime) {
        match self {
            Self::Deliveries(ids) => (Some(ids), StoredMoment::LAST.to_date_time()),
            Self::FailedSince(since) => (None, since.to_date_time()),
        }
    }
}

/// Makes at most `rows_max` deliveries of a webhook pending again, due now and with all their attempts. Returns how many.
/// Pending deliveries of events before `from_position` would be cancelled when they are due.
pub async fn resend(
    connection: &mut PgConnection,
    queue: &QueueId,
    which: &Resend,
    from_position: i64,
    now: Timestamp,
    rows_max: i64,
) -> Result<i64, StoreError> {
    match which {
        Resend::Deliveries(ids) => resend_named(connection, queue, ids, from_position, now, rows_max).await,
        Resend::FailedSince(since) => {
            let failed = resend_failed(connection, queue, *since, now, rows_max).await?;
            Ok(failed + resend_stale(connection, queue, from_position, now, rows_max - failed).await?)
        }
    }
}

async fn resend_named(
    connection: &mut PgConnection,
    queue: &QueueId,
    ids: &[String],
    from_position: i64,
    now: Timestamp,
    rows_max: i64,
) -> Result<i64, StoreError> {
    let resent = sqlx::query!(
        "-- redeliveries::resend_named
        UPDATE webhook_deliveries
        SET status = 'pending', attempts = 0, requested = true, next_attempt_at = $4, finished_at = NULL
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries
            WHERE tenant_id = $1 AND webhook_id = $2 AND delivery_id = ANY ($3)
              AND type <> 'webhook.test' AND (status <> 'pending' OR NOT requested AND event_position < $6)
            ORDER BY tenant_id, webhook_id, event_position LIMIT $5 FOR UPDATE))",
        queue.tenant.as_str(),
        queue.webhook,
        ids,
        now.to_date_time(),
        rows_max,
        from_position,
    )
    .execute(connection)
    .await?;
    Ok(resent.rows_affected() as i64)
}

async fn resend_stale(
    connection: &mut PgConnection,
    queue: &QueueId,
    from_position: i64,
    now: Timestamp,
    rows_max: i64,
) -> Result<i64, StoreError> {
    let resent = sqlx::query!(
        "-- redeliveries::resend_stale
        UPDATE webhook_deliveries SET attempts = 0, requested = true, next_attempt_at = $4
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries
            WHERE tenant_id = $1 AND webhook_id = $2 AND status = 'pending' AND NOT requested AND event_position < $3
            ORDER BY tenant_id, webhook_id, next_attempt_at LIMIT $5 FOR UPDATE))",
        queue.tenant.as_str(),
        queue.webhook,
        from_position,
        now.to_date_time(),
        rows_max,
    )
    .execute(connection)
    .await?;
    Ok(resent.rows_affected() as i64)
}

async fn resend_failed(
    connection: &mut PgConnection,
    queue: &QueueId,
    since: Timestamp,
    now: Timestamp,
    rows_max: i64,
) -> Result<i64, StoreError> {
    let resent = sqlx::query!(
        "-- redeliveries::resend_failed
        UPDATE webhook_deliveries
        SET status = 'pending', attempts = 0, requested = true, next_attempt_at = $4, finished_at = NULL
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM webhook_deliveries
            WHERE tenant_id = $1 AND webhook_id = $2 AND status IN ('failed', 'cancelled') AND finished_at >= $3
              AND type <> 'webhook.test'
            ORDER BY tenant_id, webhook_id, finished_at LIMIT $5 FOR UPDATE))",
        queue.tenant.as_str(),
        queue.webhook,
        since.to_date_time(),
        now.to_date_time(),
        rows_max,
    )
    .execute(connection)
    .await?;
    Ok(resent.rows_affected() as i64)
}

/// The selected deliveries of one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resendable {
    pub queue: QueueId,
    pub matching: i64,
    /// Whether the webhook exists and is enabled.
    pub is_enabled: bool,
}

/// The webhooks with selected deliveries, of the tenant and webhook of `filter`. Reads all deliveries of that tenant.
pub async fn resendable(
    connection: &mut PgConnection,
    filter: &Filter,
    which: &Resend,
) -> Result<Vec<Resendable>, StoreError> {
    let (ids, since) = which.parameters();
    let rows = sqlx::query!(
        r#"-- redeliveries::resendable
        SELECT delivery.tenant_id, delivery.webhook_id, count(*) AS "matching!",
               bool_and(target.webhook_id IS NOT NULL AND target.disabled_at IS NULL) AS "is_enabled!"
        FROM webhook_deliveries AS delivery
        LEFT JOIN webhooks AS target USING (tenant_id, webhook_id)
        WHERE delivery.type <> 'webhook.test' AND ($1::text IS NULL OR delivery.tenant_id = $1)
            AND ($2::text IS NULL OR delivery.webhook_id = $2)
            AND CASE WHEN delivery.status = 'pending'
                     THEN NOT delivery.requested
                        AND (target.disabled_at IS NOT NULL OR delivery.event_position < target.from_position)
                     ELSE $3::text[] IS NOT NULL OR delivery.status IN ('failed', 'cancelled') AND delivery.finished_at >= $4
                     END
            AND ($3::text[] IS NULL OR delivery.delivery_id = ANY ($3))
        GROUP BY delivery.tenant_id, delivery.webhook_id ORDER BY delivery.tenant_id, delivery.webhook_id"#,
        filter.tenant.as_ref().map(Tenant::as_str),
        filter.webhook.as_deref(),
        ids as _,
        since,
    )
    .fetch_all(connection)
    .await?;
    let resendable = rows.into_iter().map(|row| Resendable {
        queue: QueueId { tenant: Tenant::from_stored(row.tenant_id), webhook: row.webhook_id },
        matching: row.matching,
        is_enabled: row.is_enabled,
    });
    Ok(resendable.collect())
}
