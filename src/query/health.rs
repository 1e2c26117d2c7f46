//! The database part of the health checks.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::job_health::JobHealth;
use crate::store::deliveries::{self, Backlog};
use crate::store::migrations::{self, Difference};
use crate::store::retention::OldestExpiry;
use crate::store::verification::{self, LastVerification};
use crate::store::{FaultKind, StoreError, runtime_config, server};

use super::coalescer::Coalescer;
use super::reader::Reader;

/// Time limits of the database for a readiness check and for a deep health check.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
const REPORT_LIMIT: Duration = Duration::from_secs(2);

const NO_ANSWER: &str = "the database does not answer";

/// The state of a database that responds.
#[derive(Clone, Debug)]
pub struct DatabaseReport {
    pub latency_ms: u64,
    pub oldest_expiry: Option<Timestamp>,
    pub webhooks: Backlog,
    pub verification: LastVerification,
    pub is_paused: bool,
}

/// `None` if the database does not respond in time.
pub async fn report(reader: &Reader, clock: &Clock, oldest_expiry: &OldestExpiry) -> Option<DatabaseReport> {
    let began = Instant::now();
    let read = async |connection: &mut PgConnection| {
        server::ping(connection).await?;
        let latency_ms = began.elapsed().as_millis() as u64;
        Ok(DatabaseReport {
            latency_ms,
            oldest_expiry: oldest_expiry.read(connection, clock.now()).await?,
            webhooks: deliveries::backlog(connection).await?,
            verification: verification::read(connection).await?,
            is_paused: runtime_config::read(connection).await?.paused,
        })
    };
    reader.try_read(began + REPORT_LIMIT, read).await.ok()
}

/// Coalesced readiness checks.
#[derive(Debug)]
pub struct Readiness(Coalescer<(), Option<String>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Coalescer::new(1))
    }
}

impl Readiness {
    /// Why the database cannot be used; `None` if it can.
    pub async fn reason_against(&self, reader: &Reader, deadline: Instant) -> Option<String> {
        let reason = self.0.load((), deadline.into(), async |_| vec![probe(reader).await]).await;
        reason.unwrap_or_else(|| Some(NO_ANSWER.to_owned()))
    }
}

async fn probe(reader: &Reader) -> Option<String> {
    let read = async |connection: &mut PgConnection| {
        server::check_writer(connection).await?;
        let missing = migrations::missing_tables(connection).await?;
        if !missing.is_empty() {
            return Ok(Some(format!("the database lacks tables: {}", missing.join(", "))));
        }
        // Unknown migrations are accepted: during an upgrade, older replicas must stay in service.
        let Difference { pending, .. } = migrations::compare(connection).await?;
        Ok((!pending.is_empty()).then(|| format!("pending migrations: {}", pending.join(", "))))
    };
    match reader.try_read(Instant::now() + PROBE_LIMIT, read).await {
        Ok(reason) => reason,
        Err(StoreError::ReadOnly) => Some("the database is read-only".to_owned()),
        Err(StoreError::PoolExhausted) => Some("no connection to the database is free".to_owned()),
        Err(error) if error.kind() == FaultKind::Unavailable && !error.is_refusal() => Some(NO_ANSWER.to_owned()),
        Err(error) => Some(error.cause()),
    }
}

/// Seconds from `moment` to `now`, never negative.
pub fn seconds_since(moment: Timestamp, now: Timestamp) -> i64 {
    ((now.as_ms() - moment.as_ms()) / 1000).max(0)
}

/// How long the janitor has left work undone: since the expiry of the oldest remaining record, or since one of its
/// steps began to fail.
pub fn janitor_lag_seconds(jobs: &JobHealth, oldest_expiry: Option<Timestamp>, now: Timestamp) -> i64 {
    let failing = jobs.all().filter(|(job, _)| job.is_of_janitor()).filter_map(|(_, known)| known.failing_ms);
    let failing_seconds = failing.max().map_or(0, |failing_ms| failing_ms / 1000) as i64;
    oldest_expiry.map_or(0, |expiry| seconds_since(expiry, now)).max(failing_seconds)
}
