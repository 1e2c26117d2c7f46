//! Keeps the runtime configuration of this process current, and measures the database's clock. It reads one row a few
//! times a second, and at once after a notification from PostgreSQL. Polling alone applies a change within a second, so
//! the job also works behind a pooler, where LISTEN receives nothing.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::runtime_config::SharedRuntimeConfig;
use crate::store::listener::Listener;
use crate::store::pool::Pool;
use crate::store::{StoreError, runtime_config, server};

use crate::job_health::{Job, JobHealth};

/// Pause between two reads.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Maximum age of a measurement of the clocks. It bounds how long the time is wrong after the machine was suspended.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of a read.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// Pause before the next attempt to listen.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// How long a stop waits for the connections to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct RuntimeConfigWatcher {
    /// A separate pool of one connection: reads that use up the other pool must not delay a pause.
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
            // If it fails, the last state stays in force.
            super::as_run("config", run, self.run_once()).await;
            let _ = timeout(self.poll_interval, notified.notified()).await;
        }
    }

    async fn listen(&self, notified: &Notify) {
        loop {
            if let Ok(mut listener) = Listener::connect(&self.options, runtime_config::CHANNEL).await {
                // Changes before this moment sent no notification to this connection.
                notified.notify_one();
                while listener.hear().await.is_ok() {
                    notified.notify_one();
                }
            }
            sleep(LISTEN_PAUSE).await;
        }
    }

    /// Reads once and applies what changed. Returns whether anything did.
    pub async fn run_once(&self) -> Result<bool, StoreError> {
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
        Ok(self.runtime_config.replace(config?, read_at.into_std()))
    }
}
