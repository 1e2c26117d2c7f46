//! The table `webhook_queues`: one row for each webhook with pending deliveries. A dispatcher leases a webhook,
//! attempts some of its deliveries, and releases it. After a crash the lease expires. Deliveries are inserted before
//! their queue is marked as due, and read after the queue is locked, so none is missed. All of this runs in
//! transactions of [`server::begin_dispatch`](super::server::begin_dispatch).

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;

use super::StoreError;

/// A webhook, by tenant and id. Queues are locked in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueId {
    pub tenant: Tenant,
    pub webhook: String,
}

/// A tenant with pending deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub tenant: Tenant,
    /// Whether one of its webhooks is due, leased or not.
    pub is_due: bool,
}

/// Marks the queues of these webhooks as due. `webhooks` is sorted. Waits for queues that are being released.
pub async fn note_due(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhooks: &[&str],
    due_at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- webhook_queues::note_due
        INSERT INTO webhook_queues AS queue (tenant_id, webhook_id, due_at)
        SELECT $1, webhook_id, $3 FROM unnest($2::text[]) AS due (webhook_id)
        ON CONFLICT (tenant_id, webhook_id) DO UPDATE SET due_at = excluded.due_at
        WHERE queue.due_at > excluded.due_at",
        tenant.as_str(),
        webhooks as _,
        due_at.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// At most `tenants_max` tenants after `after` with pending deliveries, in the order of their ids. One index probe for
/// each.
pub async fn heads(
    connection: &mut PgConnection,
    after: &str,
    now: Timestamp,
    tenants_max: i64,
) -> Result<Vec<Head>, StoreError> {
    let rows = sqlx::query!(
        r#"-- webhook_queues::heads
        WITH RECURSIVE heads AS (
            (SELECT tenant_id, due_at FROM webhook_queues WHERE tenant_id > $1 ORDER BY tenant_id, due_at LIMIT 1)
            UNION ALL
            SELECT following.tenant_id, following.due_at
            FROM heads CROSS JOIN LATERAL (
                SELECT tenant_id, due_at FROM webhook_queues AS queue
                WHERE queue.tenant_id > heads.tenant_id ORDER BY tenant_id, due_at LIMIT 1
            ) AS following
        )
        SELECT tenant_id AS "tenant_id!", due_at <= $2 AS "is_due!" FROM heads LIMIT $3"#,
        after,
        now.to_date_time(),
        tenants_max,
    )
    .fetch_all(connection)
    .await?;
    let heads = rows.into_iter().map(|row| Head { tenant: Tenant::from_stored(row.tenant_id), is_due: row.is_due });
    Ok(heads.collect())
}

/// Leases due webhooks until `until`: for each tenant at most the given number, those due longest first. None of a tenant that
/// is being moved, because its deliveries move with it.
pub async fn lease(
    connection: &mut PgConnection,
    turns: &[(Tenant, i64)],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<QueueId>, StoreError> {
    let rows = sqlx::query!(
        "-- webhook_queues::lease
        UPDATE webhook_queues SET leased_until = $4
        WHERE ctid = ANY (ARRAY(
            SELECT due.ctid
            FROM unnest($1::text[], $2::bigint[]) AS turn (tenant_id, webhooks_max)
            CROSS JOIN LATERAL (
                SELECT FROM tenants WHERE tenants.tenant_id = turn.tenant_id AND tenants.residence = 'here' LIMIT 1
            ) AS resident
            CROSS JOIN LATERAL (
                SELECT ctid FROM webhook_queues AS queue
                WHERE queue.tenant_id = turn.tenant_id AND queue.due_at <= $3
                    AND (queue.leased_until IS NULL OR queue.leased_until <= $3)
                ORDER BY queue.tenant_id, queue.due_at LIMIT turn.webhooks_max
                FOR UPDATE SKIP LOCKED
            ) AS due))
        RETURNING tenant_id, webhook_id",
        turns.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        &turns.iter().map(|(_, webhooks_max)| *webhooks_max).collect::<Vec<_>>(),
        now.to_date_time(),
        until.to_date_time(),
    )
    .fetch_all(connection)
    .await?;
    let queues =
        rows.into_iter().map(|row| QueueId { tenant: Tenant::from_stored(row.tenant_id), webhook: row.webhook_id });
    Ok(queues.collect())
}

/// Locks the queues whose lease still ends at the given time. Others have been leased to another dispatcher. `leases`
/// is sorted; the result has its order.
pub async fn lock(connection: &mut PgConnection, leases: &[(&QueueId, Timestamp)]) -> Result<Vec<bool>, StoreError> {
    let places = sqlx::query_scalar!(
        r#"-- webhook_queues::lock
        SELECT lease.place AS "place!"
        FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY
            AS lease (tenant_id, webhook_id, leased_until, place)
        CROSS JOIN LATERAL (
            SELECT FROM webhook_queues AS queue
            WHERE queue.tenant_id = lease.tenant_id AND queue.webhook_id = lease.webhook_id
                AND queue.leased_until = lease.leased_until
            FOR UPDATE
        ) AS locked"#,
        leases.iter().map(|(id, _)| id.tenant.as_str()).collect::<Vec<_>>() as _,
        leases.iter().map(|(id, _)| id.webhook.as_str()).collect::<Vec<_>>() as _,
        &leases.iter().map(|(_, until)| until.to_date_time()).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    let mut is_held = vec![false; leases.len()];
    for place in places {
        if let Some(is_held) = is_held.get_mut(place as usize - 1) {
            *is_held = true;
        }
    }
    Ok(is_held)
}

/// Lets the lease until `until` end at `sooner`, if the queue still has it.
pub async fn shorten_lease(
    connection: &mut PgConnection,
    queue: &QueueId,
    until: Timestamp,
    sooner: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- webhook_queues::shorten_lease
        UPDATE webhook_queues SET leased_until = $4 WHERE tenant_id = $1 AND webhook_id = $2 AND leased_until = $3",
        queue.tenant.as_str(),
        queue.webhook,
        until.to_date_time(),
        sooner.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends the leases of queues that this transaction has locked. A webhook with more deliveries moves behind the others
/// that are due. The queue of a webhook without deliveries is deleted.
pub async fn release(connection: &mut PgConnection, queues: &[&QueueId], now: Timestamp) -> Result<(), StoreError> {
    let tenants: Vec<&str> = queues.iter().map(|id| id.tenant.as_str()).collect();
    let webhooks: Vec<&str> = queues.iter().map(|id| id.webhook.as_str()).collect();
    sqlx::query!(
        "-- webhook_queues::release
        DELETE FROM webhook_queues AS queue USING unnest($1::text[], $2::text[]) AS lease (tenant_id, webhook_id)
        WHERE queue.tenant_id = lease.tenant_id AND queue.webhook_id = lease.webhook_id
            AND NOT EXISTS (
                SELECT FROM webhook_deliveries AS delivery
                WHERE delivery.tenant_id = queue.tenant_id AND delivery.webhook_id = queue.webhook_id
                    AND delivery.status = 'pending')",
        &tenants as _,
        &webhooks as _,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "-- webhook_queues::release
        UPDATE webhook_queues AS queue
        SET leased_until = NULL,
            due_at = greatest($3, (
                SELECT next_attempt_at FROM webhook_deliveries AS delivery
                WHERE delivery.tenant_id = queue.tenant_id AND delivery.webhook_id = queue.webhook_id
                    AND delivery.status = 'pending'
                ORDER BY delivery.tenant_id, delivery.webhook_id, delivery.next_attempt_at LIMIT 1))
        FROM unnest($1::text[], $2::text[]) AS lease (tenant_id, webhook_id)
        WHERE queue.tenant_id = lease.tenant_id AND queue.webhook_id = lease.webhook_id",
        &tenants as _,
        &webhooks as _,
        now.to_date_time(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
