//! Figures of the whole database for the metrics. They are maintained, not counted, whatever the tables hold.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::domain::timestamp::Timestamp;
use crate::store::kept::{self, Figures};
use crate::store::retention::OldestExpiry;

use super::reader::Reader;

/// How long the database may take. The metrics leave out what it would have said.
const LIMIT: Duration = Duration::from_secs(2);

/// None if the database does not answer in time.
pub async fn read(reader: &Reader, oldest_expiry: &OldestExpiry, now: Timestamp) -> Option<Figures> {
    let read = async |connection: &mut PgConnection| kept::figures(connection, oldest_expiry, now).await;
    reader.try_read(Instant::now() + LIMIT, read).await.ok()
}
