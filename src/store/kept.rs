//! Figures of the whole database, from what is kept: nothing here is recounted, whatever the tables hold.

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;

use super::retention::OldestExpiry;
use super::totals::{self, Totals};
use super::{StoreError, caller_totals, deliveries, limits};

/// What the metrics say of the whole database.
#[derive(Clone, Debug)]
pub struct Figures {
    pub totals: Totals,
    /// Rows of `idempotency_keys`.
    pub records: i64,
    pub paused: bool,
    pub webhook_backlog: i64,
    /// When the longest expired record that is still there expired.
    pub oldest_expiry: Option<Timestamp>,
}

pub async fn figures(
    connection: &mut PgConnection,
    oldest_expiry: &OldestExpiry,
    now: Timestamp,
) -> Result<Figures, StoreError> {
    let totals = totals::of_all(connection).await?;
    let webhook_backlog = deliveries::backlog(connection).await?.pending;
    Ok(Figures {
        totals,
        records: caller_totals::records(connection).await?,
        paused: limits::read(connection).await?.paused,
        webhook_backlog,
        oldest_expiry: oldest_expiry.read(connection, now).await?,
    })
}
