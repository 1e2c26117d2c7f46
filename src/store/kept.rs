//! Figures of the whole database, from what is kept: nothing here is recounted, whatever the tables hold.

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;

use super::{StoreError, idempotency, limits};

/// What the metrics say of the whole database.
#[derive(Clone, Debug)]
pub struct Figures {
    pub services: i64,
    pub api_keys: i64,
    pub webhooks: i64,
    pub pairs: i64,
    pub outstanding: String,
    pub recorded: String,
    /// Exact decimal digits, as is everything above that may outgrow 64 bits.
    pub settled_stroops: String,
    pub settlements: i64,
    pub paused: bool,
    pub idempotency_records: i64,
    pub webhook_backlog: i64,
    /// When the longest expired record that is still there expired.
    pub oldest_expiry: Option<Timestamp>,
}

pub async fn figures(connection: &mut PgConnection, now: Timestamp) -> Result<Figures, StoreError> {
    let totals = sqlx::query!(
        r#"-- kept::figures
        SELECT coalesce(sum(services), 0)::bigint AS "services!", coalesce(sum(pairs), 0)::bigint AS "pairs!",
               coalesce(sum(outstanding), 0)::text AS "outstanding!", coalesce(sum(lifetime), 0)::text AS "recorded!",
               coalesce(sum(settled_stroops), 0)::text AS "settled_stroops!",
               coalesce(sum(settlements), 0)::bigint AS "settlements!"
        FROM tenant_totals"#,
    )
    .fetch_one(&mut *connection)
    .await?;
    let idempotency_records = sqlx::query_scalar!(
        r#"-- kept::idempotency_records
        SELECT greatest(0, coalesce((SELECT records FROM record_counts WHERE kind = 'all_replies' AND owner = '*'), 0)
            + coalesce((SELECT sum(change)::bigint FROM record_changes WHERE kind = 'caller_replies'), 0)) AS "records!""#,
    )
    .fetch_one(&mut *connection)
    .await?;
    let webhooks = webhooks(connection).await?;
    Ok(Figures {
        services: totals.services,
        api_keys: super::api_keys::count(connection).await?,
        webhooks: webhooks.registered,
        pairs: totals.pairs,
        outstanding: totals.outstanding,
        recorded: totals.recorded,
        settled_stroops: totals.settled_stroops,
        settlements: totals.settlements,
        paused: limits::read(connection).await?.paused,
        idempotency_records,
        webhook_backlog: webhooks.pending,
        oldest_expiry: idempotency::oldest_expiry(connection, now).await?,
    })
}

/// What operators are told of webhooks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Webhooks {
    pub registered: i64,
    /// Deliveries that wait for an attempt.
    pub pending: i64,
    /// When the longest due of them was due.
    pub oldest_due: Option<Timestamp>,
}

/// There are no webhooks yet, so there is nothing to tell.
#[expect(clippy::unused_async, reason = "it will ask the database")]
pub async fn webhooks(_connection: &mut PgConnection) -> Result<Webhooks, StoreError> {
    Ok(Webhooks::default())
}
