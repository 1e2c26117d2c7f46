//! Keeps this process up with what operators change: limits, pause flag, API keys. It reads one row a few times a
//! second, and at once when PostgreSQL notifies. The reading alone keeps the promise of one second, so it also holds
//! behind a pooler, where LISTEN hears nothing.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::live_limits::LiveLimits;
use crate::store::{StoreError, limits};

/// Pause between two readings.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a reading may take.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two attempts to listen.
const LISTEN_PAUSE: Duration = Duration::from_secs(5);

pub struct Follower {
    /// Two connections of its own: one reads, one listens. Readers that fill the pool must not hold up a pause.
    pool: PgPool,
    live: LiveLimits,
    listener: Option<PgListener>,
    /// When to try to listen next.
    listen_at: Instant,
    is_failing: bool,
}

impl Follower {
    pub fn new(options: PgConnectOptions, live: LiveLimits) -> Self {
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(READ_LIMIT).connect_lazy_with(options);
        Self { pool, live, listener: None, listen_at: Instant::now(), is_failing: false }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.follow()).await.is_some() {}
        drop(self.listener);
        self.pool.close().await;
    }

    /// Reads once, then waits for a notification or until it is time to read again.
    async fn follow(&mut self) {
        let read = timeout(READ_LIMIT, run_once(&self.pool, &self.live)).await;
        match read.unwrap_or(Err(StoreError::TimedOut)) {
            Ok(()) => self.is_failing = false,
            // Once per outage; the last state stays in force.
            Err(error) => {
                if !self.is_failing {
                    warn!(%error, "the limits could not be read");
                }
                self.is_failing = true;
            }
        }
        let _ = timeout(PAUSE, self.hear()).await;
    }

    /// Returns at a notification.
    async fn hear(&mut self) {
        if self.listener.is_none() && Instant::now() >= self.listen_at {
            self.listen_at = Instant::now() + LISTEN_PAUSE;
            self.listener = listen(&self.pool).await.ok();
        }
        let heard = match &mut self.listener {
            Some(listener) => listener.try_recv().await,
            None => std::future::pending().await,
        };
        // A connection that broke is made anew; what it missed is read meanwhile.
        if !matches!(heard, Ok(Some(_))) {
            self.listener = None;
        }
    }
}

async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(limits::CHANNEL).await?;
    Ok(listener)
}

pub async fn run_once(pool: &PgPool, live: &LiveLimits) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await?;
    refresh(&mut connection, live).await
}

pub async fn refresh(connection: &mut PgConnection, live: &LiveLimits) -> Result<(), StoreError> {
    live.replace(limits::read(connection).await?);
    Ok(())
}
