//! The table `webhook_deliveries`, as the write path fills it: one row per event and webhook, in `batch::write`.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;

use super::{StoreError, corrupt};

/// More webhooks than a tenant can have. The limit keeps the planner from reading those of all tenants instead.
const WEBHOOKS_MAX: i64 = 10_001;

/// An enabled webhook of one of the tenants asked for.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// Place of its tenant in the question.
    pub tenant: usize,
    pub webhook: String,
    pub events: Vec<String>,
}

/// One event for one webhook.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub tenant: &'a Tenant,
    pub delivery: String,
    pub webhook: String,
    pub position: i64,
    pub event_type: &'static str,
    pub payload: &'a str,
}

/// The enabled webhooks of these tenants that want at least one of these types.
pub async fn subscribers(
    connection: &mut PgConnection,
    tenants: &[&Tenant],
    types: &[&str],
) -> Result<Vec<Subscriber>, StoreError> {
    let names: Vec<&str> = tenants.iter().map(|tenant| tenant.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- outbox::subscribers
        SELECT wanted.position AS "position!", subscriber.webhook AS "webhook!", subscriber.events AS "events!"
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (tenant, position)
        CROSS JOIN LATERAL (
            SELECT webhook, events FROM webhooks
            WHERE webhooks.tenant = wanted.tenant AND disabled_at IS NULL AND events && $2::text[]
            LIMIT $3
        ) AS subscriber"#,
        names as _,
        types as _,
        WEBHOOKS_MAX,
    )
    .fetch_all(connection)
    .await?;
    let in_range = |position: i64| usize::try_from(position - 1).ok().filter(|place| *place < tenants.len());
    rows.into_iter()
        .map(|row| {
            let tenant = in_range(row.position).ok_or_else(|| corrupt("position"))?;
            Ok(Subscriber { tenant, webhook: row.webhook, events: row.events })
        })
        .collect()
}

/// Adds the delivery of a test, which no dispatcher touches: the request that asked for it makes the one attempt.
/// Until its end is known it counts as failed, which stays true if the process dies.
pub async fn insert_test(connection: &mut PgConnection, entry: &Entry<'_>, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query!(
        "-- outbox::insert_test
        INSERT INTO webhook_deliveries
            (tenant, delivery, webhook, created_at, event_position, type, payload, status, error, finished_at)
        VALUES ($1, $2, $3, $4, $5, $6, ($7::text)::json, 'failed', 'no attempt was completed', $4)",
        entry.tenant.as_str(),
        entry.delivery,
        entry.webhook,
        now.to_date_time(),
        entry.position,
        entry.event_type,
        entry.payload,
    )
    .execute(connection)
    .await?;
    Ok(())
}
