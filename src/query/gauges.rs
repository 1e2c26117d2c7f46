//! Figures of the whole database for the metrics. They are maintained sums, so that no table is counted.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;
use crate::store::deliveries::{self, Backlog};
use crate::store::retention::OldestExpiry;
use crate::store::server::DatabaseSize;
use crate::store::tenant_moves::{self, Unfinished};
use crate::store::totals::{self, Totals};
use crate::store::verification::{self, LastVerification};
use crate::store::{caller_totals, runtime_config};

use super::reader::Reader;

/// Time limit of the database. After it the metrics of the database are left out.
const LIMIT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Figures {
    pub totals: Totals,
    /// Number of rows in `idempotency_keys`.
    pub records: i64,
    pub paused: bool,
    pub webhooks: Backlog,
    pub verification: LastVerification,
    pub database_bytes: i64,
    /// Expiry of the oldest expired record that is not deleted yet.
    pub oldest_expiry: Option<Timestamp>,
}

/// The moves of tenants that are not complete. `home` reads the home cell. `None` if it does not respond in time.
pub async fn unfinished_moves(home: &Reader) -> Option<Vec<Unfinished>> {
    let read = async |connection: &mut PgConnection| tenant_moves::unfinished(connection).await;
    home.try_read(Instant::now() + LIMIT, read).await.ok()
}

/// `None` if the database does not respond in time.
pub async fn read(
    reader: &Reader,
    oldest_expiry: &OldestExpiry,
    database_size: &DatabaseSize,
    now: Timestamp,
) -> Option<Figures> {
    let read = async |connection: &mut PgConnection| {
        Ok(Figures {
            totals: totals::of_all(connection).await?,
            records: caller_totals::records(connection).await?,
            paused: runtime_config::read(connection).await?.paused,
            webhooks: deliveries::backlog(connection).await?,
            verification: verification::read(connection).await?,
            database_bytes: database_size.bytes(connection, now).await?,
            oldest_expiry: oldest_expiry.read(connection, now).await?,
        })
    };
    reader.try_read(Instant::now() + LIMIT, read).await.ok()
}
