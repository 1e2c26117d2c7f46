//! The table `outbox`: events that are not yet expanded to deliveries. A commit inserts one row for each event of a
//! tenant with webhooks. A dispatcher expands rows to deliveries and deletes them, in transactions of
//! [`server::begin_dispatch`](super::server::begin_dispatch).

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;
use crate::domain::trace_context::TraceContext;

use super::StoreError;

/// An event to insert.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub tenant: &'a Tenant,
    pub position: i64,
    pub event_type: &'static str,
    pub payload: &'a str,
    pub trace: Option<TraceContext>,
}

/// Inserts events, in the transaction that records them.
pub async fn insert(connection: &mut PgConnection, entries: &[Entry<'_>], now: Timestamp) -> Result<(), StoreError> {
    let traces: Vec<Option<&TraceContext>> = entries.iter().map(|entry| entry.trace.as_ref()).collect();
    sqlx::query!(
        "-- outbox::insert
        INSERT INTO outbox (tenant_id, position, recorded_at, type, payload, traceparent, tracestate)
        SELECT tenant_id, position, $1, type, payload::json, traceparent, tracestate
        FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
            AS entry (tenant_id, position, type, payload, traceparent, tracestate)",
        now.to_date_time(),
        entries.iter().map(|entry| entry.tenant.as_str()).collect::<Vec<_>>() as _,
        &entries.iter().map(|entry| entry.position).collect::<Vec<_>>(),
        entries.iter().map(|entry| entry.event_type).collect::<Vec<_>>() as _,
        entries.iter().map(|entry| entry.payload).collect::<Vec<_>>() as _,
        traces.iter().map(|trace| trace.map(|trace| trace.traceparent.as_str())).collect::<Vec<_>>() as _,
        traces.iter().map(|trace| trace.and_then(|trace| trace.tracestate.as_deref())).collect::<Vec<_>>() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// An event that is not completely expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexpanded {
    pub position: i64,
    pub recorded_at: Timestamp,
    pub event_type: String,
    /// The last webhook that the event was expanded to, in the order of ids. Empty if there is none.
    pub last_webhook_id: String,
}

/// At most `tenants_max` tenants after `after` with events in the outbox, in the order of their ids. One index probe
/// for each.
pub async fn tenants(connection: &mut PgConnection, after: &str, tenants_max: i64) -> Result<Vec<Tenant>, StoreError> {
    let tenants = sqlx::query_scalar!(
        r#"-- outbox::tenants
        WITH RECURSIVE waiting AS (
            (SELECT tenant_id FROM outbox WHERE tenant_id > $1 ORDER BY tenant_id LIMIT 1)
            UNION ALL
            SELECT following.tenant_id
            FROM waiting CROSS JOIN LATERAL (
                SELECT tenant_id FROM outbox WHERE outbox.tenant_id > waiting.tenant_id ORDER BY tenant_id LIMIT 1
            ) AS following
        )
        SELECT tenant_id AS "tenant_id!" FROM waiting LIMIT $2"#,
        after,
        tenants_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(tenants.into_iter().map(Tenant::from_stored).collect())
}

/// Locks a tenant's oldest events, at most `rows_max`. Skips those that another dispatcher has locked.
pub async fn take(
    connection: &mut PgConnection,
    tenant: &Tenant,
    rows_max: i64,
) -> Result<Vec<Unexpanded>, StoreError> {
    let rows = sqlx::query!(
        "-- outbox::take
        SELECT position, recorded_at, type, last_webhook_id FROM outbox
        WHERE tenant_id = $1 ORDER BY tenant_id, position LIMIT $2
        FOR UPDATE SKIP LOCKED",
        tenant.as_str(),
        rows_max,
    )
    .fetch_all(connection)
    .await?;
    let events = rows.into_iter().map(|row| Unexpanded {
        position: row.position,
        recorded_at: row.recorded_at.into(),
        event_type: row.r#type,
        last_webhook_id: row.last_webhook_id,
    });
    Ok(events.collect())
}

/// Deletes events that are completely expanded.
pub async fn delete(connection: &mut PgConnection, tenant: &Tenant, positions: &[i64]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- outbox::delete
        DELETE FROM outbox WHERE tenant_id = $1 AND position = ANY ($2)",
        tenant.as_str(),
        positions,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that an event is expanded up to `webhook`.
pub async fn note_expanded(
    connection: &mut PgConnection,
    tenant: &Tenant,
    position: i64,
    webhook: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- outbox::note_expanded
        UPDATE outbox SET last_webhook_id = $3 WHERE tenant_id = $1 AND position = $2",
        tenant.as_str(),
        position,
        webhook,
    )
    .execute(connection)
    .await?;
    Ok(())
}
