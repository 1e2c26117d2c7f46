//! The janitor prunes idempotency records: the expired, then the oldest of callers over their cap, then the oldest of
//! all over the total cap; and events beyond the log's length. It deletes in small transactions, one replica at a time,
//! and leaves alone what a writer holds. Its cost follows what it deletes: the counts are kept, not recounted.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::live_limits::LiveLimits;
use crate::metrics;
use crate::store::pool::Pool;
use crate::store::retention::{self, Removed};
use crate::store::{StoreError, caller_totals, events, server, totals};

use super::STEP_LIMIT;
use crate::job_health::{Job, JobHealth};

/// Rows one transaction deletes at most, so that none is long.
const ROWS_MAX: i64 = 1000;
/// Owners over their cap that one step looks at.
const OWNERS_MAX: i64 = 100;
/// How much longer the janitor rests after a step that pruned expired records than the step took, and at most. It still
/// prunes faster than records are written.
const RESTS_PER_STEP: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);
/// Transactions one round may take for each of its tasks.
const STEPS_MAX: u32 = 100;
/// Rounds of one run; what is left waits for the next.
const ROUNDS_MAX: u32 = 10;

/// How the janitor is set up.
#[derive(Clone, Debug)]
pub struct JanitorSettings {
    pub pause: Duration,
    /// Records in total.
    pub records_max: i64,
    /// Records of one caller.
    pub records_of_caller_max: i64,
}

/// What one run removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// False if another replica's janitor was at work.
    pub was_alone: bool,
    pub expired: i64,
    /// Records removed for their caller's cap, and those of them that had not expired.
    pub over_caller_cap: i64,
    pub live_over_caller_cap: i64,
    /// The same for the total cap.
    pub over_total_cap: i64,
    pub live_over_total_cap: i64,
    pub events: i64,
}

#[derive(Clone, Debug)]
pub struct Janitor {
    pub settings: JanitorSettings,
    pub pool: Pool,
    pub clock: Clock,
    pub limits: LiveLimits,
    pub last_run: LastRun,
    pub health: JobHealth,
}

/// When this process's janitor last looked; all clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct LastRun(Arc<AtomicI64>);

impl LastRun {
    pub fn get(&self) -> Option<Timestamp> {
        let ms = self.0.load(Ordering::Relaxed);
        (ms > 0).then_some(Timestamp::from_ms(ms))
    }

    fn set(&self, now: Timestamp) {
        self.0.store(now.as_ms(), Ordering::Relaxed);
    }
}

impl Janitor {
    pub async fn run(self, stop: CancellationToken) {
        while super::pause(self.settings.pause, &stop).await {
            let mut report = Report::default();
            // A run may be cut or fail anywhere: each of its transactions is whole, and counted as soon as its end is heard.
            let outcome = stop.run_until_cancelled(self.prune(&mut report)).await;
            log(&report, &self.settings);
            if outcome.is_none() {
                return;
            }
        }
    }

    /// Prunes everything there is to prune. An error: a step failed; all others were done.
    pub async fn run_once(&self) -> Result<Report, StoreError> {
        let mut report = Report::default();
        self.prune(&mut report).await.map(|()| report)
    }

    /// A few steps of each task a round, so that the log and the counts do not wait for a million records that expired
    /// together.
    async fn prune(&self, report: &mut Report) -> Result<(), StoreError> {
        let allowed = server::check_clock(&self.clock);
        if allowed.is_err() {
            Job::ALL.into_iter().filter(|job| job.is_of_janitor()).for_each(|job| self.health.note(job, &allowed));
            return allowed;
        }
        for _ in 0..ROUNDS_MAX {
            if !self.round(report).await? {
                break;
            }
        }
        Ok(())
    }

    /// Says whether something is left. A task that fails keeps none of the others from its turn.
    async fn round(&self, report: &mut Report) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let expired = self.expired(now, report).await;
        let tasks: &[Job] = match expired {
            // Another janitor is at work, and knows.
            Ok(None) => return Ok(false),
            // The expired go first: as long as some may be left, no cap takes a record that is still live.
            Ok(Some(true)) => &[Job::Events],
            Ok(Some(false)) | Err(_) => &[Job::CallerCap, Job::TotalCap, Job::Events],
        };
        let mut outcome = expired.map(|are_left| are_left == Some(true));
        for task in tasks {
            let done = self.task(*task, report).await;
            self.health.note(*task, &done);
            outcome = match (outcome, done) {
                (Ok(is_left), Ok(more)) => Ok(is_left | more),
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            };
        }
        outcome
    }

    /// The steps of a task, as many as one round may take. Says whether there is more to do.
    async fn task(&self, task: Job, report: &mut Report) -> Result<bool, StoreError> {
        for _ in 0..STEPS_MAX {
            let step = async |connection: &mut PgConnection| match task {
                Job::CallerCap => self.over_caller_cap(connection, report).await,
                Job::TotalCap => self.over_total_cap(connection, report).await,
                _ => self.old_events(connection, report).await,
            };
            if !self.pool.run(Instant::now() + STEP_LIMIT, step).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prunes expired records. Says whether some may be left; None if another janitor is at work.
    async fn expired(&self, now: Timestamp, report: &mut Report) -> Result<Option<bool>, StoreError> {
        for _ in 0..STEPS_MAX {
            let began = Instant::now();
            let removed = self.pool.run(began + STEP_LIMIT, expired).await;
            match removed {
                Ok(None) => Job::ALL.into_iter().filter(|job| job.is_of_janitor()).for_each(|job| {
                    self.health.note_left_to_others(job);
                }),
                _ => self.health.note(Job::Expired, &removed),
            }
            let removed = removed?;
            self.last_run.set(now);
            let Some(removed) = removed else { return Ok(None) };
            report.was_alone = true;
            report.expired += removed;
            if removed < ROWS_MAX {
                return Ok(Some(false));
            }
            // The requests of now come first.
            tokio::time::sleep((RESTS_PER_STEP * began.elapsed()).min(REST_MAX)).await;
        }
        Ok(Some(true))
    }

    /// False when nobody is over the cap, or nothing could be removed.
    async fn over_caller_cap(&self, connection: &mut PgConnection, report: &mut Report) -> Result<bool, StoreError> {
        let mut transaction = connection.begin().await?;
        if !server::try_janitor_lock(&mut transaction).await? {
            return Ok(false);
        }
        let cap = self.settings.records_of_caller_max;
        let mut removed = Vec::new();
        let mut room = ROWS_MAX;
        for caller in caller_totals::over_cap(&mut transaction, cap, OWNERS_MAX).await? {
            let surplus = (caller.records - cap).min(room);
            removed.extend(retention::evict_oldest_of_caller(&mut transaction, &caller.caller, surplus).await?);
            room -= surplus;
            if room == 0 {
                break;
            }
        }
        let (records, live) = note(&mut transaction, &removed).await?;
        transaction.commit().await?;
        report.over_caller_cap += records;
        report.live_over_caller_cap += live;
        Ok(records > 0)
    }

    /// False when the total is within the cap, or nothing could be removed.
    async fn over_total_cap(&self, connection: &mut PgConnection, report: &mut Report) -> Result<bool, StoreError> {
        let mut transaction = connection.begin().await?;
        if !server::try_janitor_lock(&mut transaction).await? {
            return Ok(false);
        }
        let surplus = caller_totals::records(&mut transaction).await? - self.settings.records_max;
        if surplus <= 0 {
            transaction.commit().await?;
            return Ok(false);
        }
        let removed = retention::evict_oldest(&mut transaction, surplus.min(ROWS_MAX)).await?;
        let (records, live) = note(&mut transaction, &removed).await?;
        transaction.commit().await?;
        report.over_total_cap += records;
        report.live_over_total_cap += live;
        Ok(records > 0)
    }

    /// The tenants whose log is too long. False when there is none.
    async fn old_events(&self, connection: &mut PgConnection, report: &mut Report) -> Result<bool, StoreError> {
        let mut transaction = connection.begin().await?;
        if !server::try_janitor_lock(&mut transaction).await? {
            return Ok(false);
        }
        let cap = self.limits.now().event_log_cap;
        let mut deleted = 0;
        for tenant in totals::over_event_cap(&mut transaction, cap, OWNERS_MAX).await? {
            let surplus = tenant.events.min(ROWS_MAX - deleted);
            let removed = events::delete_oldest(&mut transaction, &tenant.tenant_id, surplus, ROWS_MAX).await?;
            totals::subtract_events(&mut transaction, &tenant.tenant_id, removed).await?;
            deleted += removed;
            if deleted >= ROWS_MAX {
                break;
            }
        }
        caller_totals::forget_empty(&mut transaction, ROWS_MAX).await?;
        transaction.commit().await?;
        report.events += deleted;
        Ok(deleted > 0)
    }
}

/// One step. None if another janitor is at work, else how many records were removed.
async fn expired(connection: &mut PgConnection) -> Result<Option<i64>, StoreError> {
    let mut transaction = connection.begin().await?;
    if !server::try_janitor_lock(&mut transaction).await? {
        return Ok(None);
    }
    let removed = retention::prune_expired(&mut transaction, ROWS_MAX).await?;
    let (records, _) = note(&mut transaction, &removed).await?;
    transaction.commit().await?;
    Ok(Some(records))
}

/// Corrects the counts by what was removed, in the same transaction. Returns the records removed, and the live of them.
async fn note(connection: &mut PgConnection, removed: &[Removed]) -> Result<(i64, i64), StoreError> {
    if removed.is_empty() {
        return Ok((0, 0));
    }
    caller_totals::subtract(connection, removed).await?;
    Ok((removed.iter().map(|removed| removed.records).sum(), removed.iter().map(|removed| removed.live).sum()))
}

fn log(report: &Report, settings: &JanitorSettings) {
    metrics::records_expired(report.expired.unsigned_abs());
    metrics::records_evicted("caller", report.live_over_caller_cap.unsigned_abs());
    metrics::records_evicted("total", report.live_over_total_cap.unsigned_abs());
    let evicted = report.over_caller_cap + report.over_total_cap;
    if report.expired + evicted + report.events > 0 {
        info!(expired = report.expired, evicted, events = report.events, "the janitor pruned");
    }
    if report.live_over_caller_cap > 0 {
        let cap = settings.records_of_caller_max;
        warn!(cap, count = report.live_over_caller_cap, "live idempotency records evicted");
    }
    if report.live_over_total_cap > 0 {
        warn!(cap = settings.records_max, count = report.live_over_total_cap, "live idempotency records evicted");
    }
}
