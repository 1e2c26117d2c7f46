//! Keeps the limits in force up to date: every replica follows a change in the database within a second.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::live_limits::LiveLimits;
use crate::store::{StoreError, limits};

const PAUSE: Duration = Duration::from_millis(500);

pub async fn run(pool: PgPool, live: LiveLimits, stop: CancellationToken) {
    let mut is_failing = false;
    while super::pause(PAUSE, &stop).await {
        match run_once(&pool, &live).await {
            Ok(()) => is_failing = false,
            // Once per outage; the last limits stay in force.
            Err(error) => {
                if !is_failing {
                    warn!(%error, "the limits could not be read");
                }
                is_failing = true;
            }
        }
    }
}

pub async fn run_once(pool: &PgPool, live: &LiveLimits) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?;
    live.replace(limits::read(&mut connection).await?);
    Ok(())
}
