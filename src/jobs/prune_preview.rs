//! What the janitor and the dispatcher would delete now. Deletes nothing, and takes no lock.

use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::domain::delivery::KEPT_MS;
use crate::store::{StoreError, deliveries, retention, server, totals};

use super::STEP_LIMIT;
use super::eviction::Cursors;
use super::janitor::{Janitor, ROWS_MAX};

/// Tenants whose logs are looked at.
const TENANTS_MAX: i64 = 10_000;

/// What would be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    pub expired_records: i64,
    /// Live records over a cap, at most: expired ones count until they are deleted.
    pub evicted_records: i64,
    /// Events beyond the length of a log, at most: they are deleted in runs of one commit.
    pub events: i64,
    /// Deliveries that finished too long ago to be listed.
    pub deliveries: i64,
}

impl Preview {
    pub fn rows(&self) -> i64 {
        self.expired_records + self.evicted_records + self.events + self.deliveries
    }
}

pub async fn preview(janitor: &Janitor) -> Result<Preview, StoreError> {
    let (cap, kept_since) = (janitor.runtime_config.limits().event_log_cap, janitor.clock.now().plus_ms(-KEPT_MS));
    let count = async |connection: &mut PgConnection| {
        let tenants = totals::over_event_cap(connection, cap, TENANTS_MAX).await?;
        Ok(Preview {
            expired_records: retention::count_expired(connection).await?,
            evicted_records: 0,
            events: tenants.iter().map(|tenant| tenant.events).sum(),
            deliveries: deliveries::count_finished_before(connection, kept_since).await?,
        })
    };
    let counted = janitor.pool.run(Instant::now() + STEP_LIMIT, count).await?;
    Ok(Preview { evicted_records: count_evicted(janitor).await?, ..counted })
}

/// Walks the records as an eviction does.
async fn count_evicted(janitor: &Janitor) -> Result<i64, StoreError> {
    let read = async |connection: &mut PgConnection| janitor.read_surpluses(connection).await;
    let mut surpluses = janitor.pool.run(Instant::now() + STEP_LIMIT, read).await?;
    let (start, horizon) = janitor.evictable(janitor.clock.now());
    let (mut cursors, mut evicted) = (Cursors::default(), 0);
    while let Some(stretch) = cursors.next(&surpluses, start, horizon) {
        let walk = async |connection: &mut PgConnection| {
            let mut transaction = server::begin_walk(connection).await?;
            let (age_ms, callers) = (janitor.age_ms(), &stretch.callers);
            let walked =
                retention::walk(&mut transaction, stretch.from, stretch.until, callers, age_ms, ROWS_MAX).await?;
            transaction.rollback().await?;
            Ok(walked)
        };
        let walked = janitor.pool.run(Instant::now() + STEP_LIMIT, walk).await?;
        evicted += cursors.choose(&stretch, &walked, &mut surpluses, ROWS_MAX as usize).len() as i64;
    }
    Ok(evicted)
}
