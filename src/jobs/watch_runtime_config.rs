//! Keeps the runtime configuration of this process current, and its measurement of the database's clock. Reads one row a
//! few times a second, and at once when PostgreSQL notifies. Polling alone applies a change within a second, so it also
//! works behind a pooler, where LISTEN receives nothing.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::clock::Clock;
use crate::runtime_config::SharedRuntimeConfig;
use crate::store::listener::Listener;
use crate::store::pool::Pool;
use crate::store::{StoreError, runtime_config, server};

use crate::job_health::{Job, JobHealth};

/// Pause between two readings.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How old a comparison of the clocks may be. After a longer one the time of a suspended machine would be wrong for long.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a reading may take.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// Pause before listening is tried again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// How long a stop waits for the connections to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct RuntimeConfigWatcher {
    /// A connection of its own beside the listener's: readers that fill the pool must not hold up a pause.
    pool: Pool,
    options: PgConnectOptions,
    runtime_config: SharedRuntimeConfig,
    health: JobHealth,
    clock: Clock,
    pub poll_interval: Duration,
}

impl RuntimeConfigWatcher {
    pub fn new(
        options: PgConnectOptions,
        runtime_config: SharedRuntimeConfig,
        health: JobHealth,
        clock: Clock,
    ) -> Self {
        let pool = Pool::new(options.clone(), 1, READ_LIMIT);
        Self { pool, options, runtime_config, health, clock, poll_interval: POLL_INTERVAL }
    }

    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.watch()).await;
        self.pool.close(CLOSE_LIMIT).await;
    }

    async fn watch(&self) {
        let notified = Notify::new();
        tokio::join!(self.poll(&notified), self.listen(&notified));
    }

    async fn poll(&self, notified: &Notify) {
        for run in 1.. {
            // A failure is noted; the last state stays in force.
            let _ = self.run_once().instrument(super::run_span("config", run)).await;
            let _ = timeout(self.poll_interval, notified.notified()).await;
        }
    }

    async fn listen(&self, notified: &Notify) {
        loop {
            if let Ok(mut listener) = Listener::connect(&self.options, runtime_config::CHANNEL).await {
                // A change before this moment was not heard.
                notified.notify_one();
                while listener.hear().await.is_ok() {
                    notified.notify_one();
                }
            }
            sleep(LISTEN_PAUSE).await;
        }
    }

    /// Reads once, and takes over what it found.
    pub async fn run_once(&self) -> Result<(), StoreError> {
        let read_at = Instant::now();
        let read = async |connection: &mut PgConnection| {
            let config = runtime_config::read(connection).await?;
            if !self.clock.is_measured_within(CLOCK_INTERVAL) {
                server::measure_clock(connection, &self.clock).await?;
            }
            Ok(config)
        };
        let config = self.pool.run(read_at + READ_LIMIT, read).await;
        self.health.note(Job::Config, &config);
        self.runtime_config.replace(config?, read_at.into_std());
        Ok(())
    }
}
