//! The janitor deletes expired idempotency records, evicts the oldest records of callers over a cap, and prunes events
//! over `eventLogCap`. Its transactions are small, only one replica works at a time, and rows that a writer has locked
//! are skipped. A record younger than an hour is never evicted; a caller that has no older ones becomes full. The
//! counts are maintained by writers, so the cost depends only on what is deleted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::domain::cell::Dialect;
use crate::domain::timestamp::{StoredMoment, Timestamp};
use crate::full_callers::FullCallers;
use crate::metrics::CellCounters;
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::janitor::JanitorSettings;
use crate::store::api_keys;
use crate::store::caller_totals::{self, CallerTotal};
use crate::store::pool::Pool;
use crate::store::retention::{self, Removed};
use crate::store::{StoreError, events, full_callers, server, totals};

use super::STEP_LIMIT;
use super::eviction::{self, Cursors, Stretch, Surplus};
use crate::job_health::{Job, JobHealth};

/// Maximum number of rows that one transaction deletes.
pub(super) const ROWS_MAX: i64 = 1000;
/// Maximum number of callers over a cap in one run, and of full callers.
const CALLERS_MAX: i64 = 10_000;
/// Maximum number of tenants over the event cap in one step.
const OWNERS_MAX: i64 = 100;
/// Minimum age of a live record that is evicted, unless its lifetime is shorter. Clients retry for minutes, so their
/// retries are not executed again.
const PROMISE_MS: i64 = 3_600_000;
/// After a step that deleted records, the janitor pauses for this many times the duration of the step, at most
/// `REST_MAX`. It still deletes faster than records are written.
const RESTS_PER_STEP: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);
/// Maximum number of transactions of each step in one round.
const STEPS_MAX: u32 = 100;
/// Maximum number of rounds in one run. The next run continues.
const ROUNDS_MAX: u32 = 10;

/// What one run deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// False if the janitor of another replica was working.
    pub was_alone: bool,
    pub expired: i64,
    /// Live records evicted for the caller's caps, and for the total cap.
    pub over_caller_cap: i64,
    pub over_total_cap: i64,
    pub events: i64,
}

impl Report {
    fn deleted(&self) -> i64 {
        self.expired + self.over_caller_cap + self.over_total_cap + self.events
    }
}

#[derive(Clone, Debug)]
pub struct Janitor {
    pub settings: JanitorSettings,
    pub pool: Pool,
    pub clock: Clock,
    pub runtime_config: SharedRuntimeConfig,
    pub last_run: LastRun,
    pub health: JobHealth,
    pub full: FullCallers,
    pub cursors: Arc<Mutex<Cursors>>,
}

/// When the janitor of this process last ran. All clones share it.
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
        // Other processes may have found full callers before this one started.
        stop.run_until_cancelled(super::as_run("janitor", 0, self.learn_full())).await;
        for run in 1.. {
            if !super::pause(self.settings.pause, &stop).await {
                return;
            }
            // A step that fails is tried again.
            super::as_run("janitor", run, self.run_until(&stop)).await;
        }
    }

    /// One run, which `stop` may cancel at any point. Each of its transactions is complete, and is counted when its result is
    /// known. Returns whether records or events were deleted, or callers have become full or are so no longer.
    async fn run_until(&self, stop: &CancellationToken) -> Result<bool, StoreError> {
        let mut report = Report::default();
        let outcome = stop.run_until_cancelled(self.work(&mut report)).await;
        log(&report, &self.settings, &self.health.counters);
        Ok(outcome.unwrap_or(Ok(false))? || report.deleted() > 0)
    }

    /// Prunes until nothing is left. Returns an error if a step failed; the other steps were still done.
    pub async fn run_once(&self) -> Result<Report, StoreError> {
        let mut report = Report::default();
        self.work(&mut report).await?;
        Ok(report)
    }

    /// Returns whether the full callers have changed.
    async fn work(&self, report: &mut Report) -> Result<bool, StoreError> {
        let pruned = self.prune(report).await;
        let has_changed = self.learn_full().await?;
        pruned.map(|()| has_changed)
    }

    /// Alternates between the steps, so that events and caps need not wait until a million expired records are deleted.
    async fn prune(&self, report: &mut Report) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            if !self.round(report).await? {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether something is left. A step that fails does not prevent the others.
    pub async fn round(&self, report: &mut Report) -> Result<bool, StoreError> {
        let allowed = server::check_clock(&self.clock);
        if allowed.is_err() {
            Job::ALL.into_iter().filter(|job| job.is_of_janitor()).for_each(|job| self.health.note(job, &allowed));
        }
        allowed?;
        let now = self.clock.now();
        let expired = match self.expired(now, report).await {
            // Another janitor is working.
            Ok(None) => return Ok(false),
            Ok(Some(are_left)) => Ok(are_left),
            Err(error) => Err(error),
        };
        // Expired records first: while some may be left, no live record is evicted.
        let caps = match expired {
            Ok(true) => Ok(false),
            _ => self.noted(Job::Caps, self.caps(now, report).await),
        };
        let events = self.noted(Job::Events, self.events(report).await);
        Ok(expired? | caps? | events?)
    }

    fn noted(&self, job: Job, done: Result<bool, StoreError>) -> Result<bool, StoreError> {
        self.health.note(job, &done);
        done
    }

    /// Prunes events, in a limited number of steps. Returns whether something is left.
    async fn events(&self, report: &mut Report) -> Result<bool, StoreError> {
        for _ in 0..STEPS_MAX {
            let step = async |connection: &mut PgConnection| self.old_events(connection, report).await;
            if !self.pool.run(Instant::now() + STEP_LIMIT, step).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes expired records. Returns whether some may be left; `None` if another janitor is working.
    async fn expired(&self, now: Timestamp, report: &mut Report) -> Result<Option<bool>, StoreError> {
        for _ in 0..STEPS_MAX {
            let began = Instant::now();
            let step = async |connection: &mut PgConnection| expired(connection, self.pool.dialect()).await;
            let removed = self.pool.run(began + STEP_LIMIT, step).await;
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
            rest_after(began).await;
        }
        Ok(Some(true))
    }

    /// Evicts records of callers over a cap, and records which callers are full. Returns whether something is left.
    async fn caps(&self, now: Timestamp, report: &mut Report) -> Result<bool, StoreError> {
        let look = async |connection: &mut PgConnection| self.surpluses(connection).await;
        let Some(mut surpluses) = self.pool.run(Instant::now() + STEP_LIMIT, look).await? else { return Ok(false) };
        let (start, horizon) = self.evictable(now);
        self.cursors().tidy(start);
        for _ in 0..STEPS_MAX {
            let next = self.cursors().next(&surpluses, start, horizon);
            let Some(stretch) = next else {
                let full = eviction::with_surplus(&surpluses);
                let note =
                    async |connection: &mut PgConnection| note_full(connection, self.pool.dialect(), &full).await;
                self.pool.run(Instant::now() + STEP_LIMIT, note).await?;
                return Ok(false);
            };
            let began = Instant::now();
            let step =
                async |connection: &mut PgConnection| self.evict(connection, &stretch, &mut surpluses, report).await;
            match self.pool.run(began + STEP_LIMIT, step).await {
                Ok(true) => rest_after(began).await,
                Ok(false) => return Ok(false),
                Err(error) => {
                    self.cursors().rewind(&stretch);
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// By how much callers exceed their caps. `None` if another janitor is working.
    async fn surpluses(&self, connection: &mut PgConnection) -> Result<Option<BTreeMap<String, Surplus>>, StoreError> {
        let mut transaction = connection.begin().await?;
        if !server::try_janitor_lock(&mut transaction, self.pool.dialect()).await? {
            return Ok(None);
        }
        let surpluses = self.read_surpluses(&mut transaction).await?;
        transaction.commit().await?;
        Ok(Some(surpluses))
    }

    pub(super) async fn read_surpluses(
        &self,
        connection: &mut PgConnection,
    ) -> Result<BTreeMap<String, Surplus>, StoreError> {
        let JanitorSettings { records_max, records_of_caller_max, bytes_of_caller_max, .. } = self.settings;
        let is_over = caller_totals::records(connection).await? > records_max;
        let level = if is_over { caller_totals::level(connection, records_max).await? } else { None };
        let allowed = level.map_or(records_of_caller_max, |level| level.min(records_of_caller_max));
        let over = caller_totals::over(connection, allowed, bytes_of_caller_max, CALLERS_MAX).await?;
        let surpluses = over.into_iter().map(|CallerTotal { caller, records, bytes }| {
            let is_over_own = records > records_of_caller_max || bytes > bytes_of_caller_max;
            let cap = if is_over_own { "caller" } else { "total" };
            (caller, Surplus { records: records - allowed, bytes: bytes - bytes_of_caller_max, cap })
        });
        Ok(surpluses.collect())
    }

    /// Evicts from one range. False if another janitor is working.
    async fn evict(
        &self,
        connection: &mut PgConnection,
        stretch: &Stretch,
        surpluses: &mut BTreeMap<String, Surplus>,
        report: &mut Report,
    ) -> Result<bool, StoreError> {
        let age_ms = self.age_ms();
        let mut transaction = server::begin_walk(connection).await?;
        if !server::try_janitor_lock(&mut transaction, self.pool.dialect()).await? {
            return Ok(false);
        }
        let Stretch { from, until, callers } = stretch;
        let walked = retention::walk(&mut transaction, *from, *until, callers, age_ms, ROWS_MAX).await?;
        let places = self.cursors().choose(stretch, &walked, surpluses, ROWS_MAX as usize);
        if places.is_empty() {
            transaction.commit().await?;
            return Ok(true);
        }
        let removed = retention::evict(&mut transaction, &places, callers, age_ms).await?;
        note(&mut transaction, &removed).await?;
        transaction.commit().await?;
        for Removed { caller, records, .. } in removed {
            match surpluses.get(&caller).map(|surplus| surplus.cap) {
                Some("caller") => report.over_caller_cap += records,
                _ => report.over_total_cap += records,
            }
        }
        Ok(true)
    }

    /// Reads which callers are full. Every replica does so, whichever one prunes. Returns whether they have changed.
    async fn learn_full(&self) -> Result<bool, StoreError> {
        let read = async |connection: &mut PgConnection| full_callers::list(connection, CALLERS_MAX).await;
        let full = self.pool.run(Instant::now() + STEP_LIMIT, read).await;
        self.health.note(Job::FullCallers, &full);
        Ok(self.full.replace(full?.into_iter().collect()))
    }

    /// Records that expire between these moments may be evicted. Those before have expired, those after are too young.
    pub(super) fn evictable(&self, now: Timestamp) -> (StoredMoment, StoredMoment) {
        (now.into(), now.plus_ms(self.settings.ttl_ms - self.age_ms()).into())
    }

    /// Minimum age of a live record that may be evicted.
    pub(super) fn age_ms(&self) -> i64 {
        self.settings.ttl_ms.min(PROMISE_MS)
    }

    fn cursors(&self) -> MutexGuard<'_, Cursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prunes events of some tenants over the cap. False if there are none.
    async fn old_events(&self, connection: &mut PgConnection, report: &mut Report) -> Result<bool, StoreError> {
        let mut transaction = connection.begin().await?;
        if !server::try_janitor_lock(&mut transaction, self.pool.dialect()).await? {
            return Ok(false);
        }
        let cap = self.runtime_config.limits().event_log_cap;
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
        transaction.commit().await?;
        report.events += deleted;
        Ok(deleted > 0)
    }
}

/// Deletes some expired records, and returns their number. `None` if another janitor is working.
async fn expired(connection: &mut PgConnection, dialect: Dialect) -> Result<Option<i64>, StoreError> {
    let mut transaction = server::begin_walk(connection).await?;
    if !server::try_janitor_lock(&mut transaction, dialect).await? {
        return Ok(None);
    }
    let removed = retention::prune_expired(&mut transaction, ROWS_MAX).await?;
    let records = note(&mut transaction, &removed).await?;
    api_keys::delete_expired(&mut transaction).await?;
    transaction.commit().await?;
    Ok(Some(records))
}

/// Leaves the database to requests for a while.
async fn rest_after(began: Instant) {
    tokio::time::sleep((RESTS_PER_STEP * began.elapsed()).min(REST_MAX)).await;
}

/// Updates the totals in the same transaction. It is the last statement, because commits may wait for these rows.
/// Returns the number of records.
async fn note(connection: &mut PgConnection, removed: &[Removed]) -> Result<i64, StoreError> {
    caller_totals::subtract(connection, removed).await?;
    Ok(removed.iter().map(|removed| removed.records).sum())
}

/// Replaces the list of full callers, unless another janitor is working, and deletes the totals of callers without
/// records.
async fn note_full(connection: &mut PgConnection, dialect: Dialect, full: &[&str]) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await?;
    if !server::try_janitor_lock(&mut transaction, dialect).await? {
        return Ok(());
    }
    let (added, gone) = full_callers::replace(&mut transaction, full).await?;
    caller_totals::forget_empty(&mut transaction, ROWS_MAX).await?;
    transaction.commit().await?;
    if added > 0 {
        let count = full.len();
        warn!(added, count, "callers over a cap have no records that may be evicted: they get no new ones");
    } else if gone > 0 {
        info!(gone, count = full.len(), "callers that were full get new records again");
    }
    Ok(())
}

fn log(report: &Report, settings: &JanitorSettings, counters: &CellCounters) {
    counters.records_expired(report.expired.unsigned_abs());
    let JanitorSettings { records_max, records_of_caller_max: records, bytes_of_caller_max: bytes, .. } = settings;
    let evicted = report.over_caller_cap + report.over_total_cap;
    if report.deleted() > 0 {
        info!(expired = report.expired, evicted, events = report.events, "the janitor pruned");
    }
    if report.over_caller_cap > 0 {
        counters.records_evicted("caller", report.over_caller_cap.unsigned_abs());
        warn!(cap = records, bytes, count = report.over_caller_cap, "live idempotency records evicted");
    }
    if report.over_total_cap > 0 {
        counters.records_evicted("total", report.over_total_cap.unsigned_abs());
        warn!(cap = records_max, count = report.over_total_cap, "live idempotency records evicted");
    }
}
