//! Figures of the whole database, from what is kept: nothing here is recounted, whatever the tables hold.

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;

use super::retention::OldestExpiry;
use super::totals::{self, ALL_TENANTS, Totals};
use super::{StoreError, deliveries, limits};

/// What the metrics say of the whole database.
#[derive(Clone, Debug)]
pub struct Figures {
    pub totals: Totals,
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
    let totals = totals::of(connection, ALL_TENANTS).await?;
    let (webhook_backlog, _) = deliveries::backlog(connection).await?;
    Ok(Figures {
        totals,
        paused: limits::read(connection).await?.paused,
        webhook_backlog,
        oldest_expiry: oldest_expiry.read(connection, now).await?,
    })
}
