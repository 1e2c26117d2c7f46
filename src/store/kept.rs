//! Figures of the whole database, from what is kept: nothing here is recounted, whatever the tables hold.

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;

use super::totals::{self, ALL_TENANTS, Totals};
use super::{StoreError, deliveries, idempotency, limits};

/// What the metrics say of the whole database.
#[derive(Clone, Debug)]
pub struct Figures {
    pub totals: Totals,
    pub paused: bool,
    pub idempotency_records: i64,
    pub webhook_backlog: i64,
    /// When the longest expired record that is still there expired.
    pub oldest_expiry: Option<Timestamp>,
}

pub async fn figures(connection: &mut PgConnection, now: Timestamp) -> Result<Figures, StoreError> {
    let totals = totals::of(connection, ALL_TENANTS).await?;
    let idempotency_records = sqlx::query_scalar!(
        r#"-- kept::idempotency_records
        SELECT greatest(0, coalesce((SELECT records FROM record_counts WHERE kind = 'all_replies' AND owner = '*'), 0)
            + coalesce((SELECT sum(change)::bigint FROM record_changes WHERE kind = 'caller_replies'), 0)) AS "records!""#,
    )
    .fetch_one(&mut *connection)
    .await?;
    let (webhook_backlog, _) = deliveries::backlog(connection).await?;
    Ok(Figures {
        totals,
        paused: limits::read(connection).await?.paused,
        idempotency_records,
        webhook_backlog,
        oldest_expiry: idempotency::oldest_expiry(connection, now).await?,
    })
}
