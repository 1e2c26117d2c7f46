//! The health of background jobs and of commits: when each last succeeded, and how it last failed. Readiness, deep
//! health and metrics report it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use crate::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::metrics::CellCounters;
use crate::store::{FaultKind, StoreError};

/// A job that has failed for this long is an error instead of a warning.
const TOLERATED_MS: u64 = 60_000;
/// After this long without another failure it is unknown whether commits still fail. A replica that receives no
/// requests because of the failure must receive one again to find out.
const COMMIT_LAPSE_MS: u64 = 60_000;

/// A unit of work that can fail independently of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Reads the limits, the pause flag and the revisions.
    Config,
    /// The steps of the janitor.
    Expired,
    Caps,
    Events,
    /// Reads which callers may not create records.
    FullCallers,
    /// The steps of the dispatcher.
    WebhookExpand,
    WebhookLease,
    WebhookSecrets,
    WebhookRecord,
    WebhookPrune,
    /// Checks every sum of the database.
    Verify,
    /// Commits requests. Not a job: it depends on requests.
    Commit,
}

impl Job {
    pub const ALL: [Self; 12] = [
        Self::Config,
        Self::Expired,
        Self::Caps,
        Self::Events,
        Self::FullCallers,
        Self::WebhookExpand,
        Self::WebhookLease,
        Self::WebhookSecrets,
        Self::WebhookRecord,
        Self::WebhookPrune,
        Self::Verify,
        Self::Commit,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Expired => "janitor_expired",
            Self::Caps => "janitor_caps",
            Self::Events => "janitor_events",
            Self::FullCallers => "full_callers",
            Self::WebhookExpand => "webhook_expand",
            Self::WebhookLease => "webhook_lease",
            Self::WebhookSecrets => "webhook_secrets",
            Self::WebhookRecord => "webhook_record",
            Self::WebhookPrune => "webhook_prune",
            Self::Verify => "verify",
            Self::Commit => "commit",
        }
    }

    pub fn is_of_janitor(self) -> bool {
        matches!(self, Self::Expired | Self::Caps | Self::Events)
    }
}

/// The state of one job.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub last_success_at: Option<Timestamp>,
    /// Without secrets and data.
    pub last_error: Option<(String, Timestamp)>,
    /// The kind of the last error.
    pub last_fault: Option<FaultKind>,
    /// When the current series of failures began, in [`Clock::elapsed_ms`]. `None` if the job does not fail.
    failing_since_ms: Option<u64>,
    /// When it last failed, in [`Clock::elapsed_ms`].
    failed_at_ms: u64,
    /// How long it has been failing.
    pub failing_ms: Option<u64>,
}

impl State {
    /// Whether it has been failing for longer than is tolerated.
    pub fn is_broken(&self) -> bool {
        self.failing_ms.is_some_and(|failing_ms| failing_ms >= TOLERATED_MS)
    }
}

/// The health of this process. All clones share it.
#[derive(Clone, Debug)]
pub struct JobHealth {
    /// What the jobs of the cell count.
    pub counters: CellCounters,
    clock: Clock,
    states: Arc<Mutex<[State; Job::ALL.len()]>>,
}

impl JobHealth {
    pub fn new(clock: Clock) -> Self {
        Self::of_cell(clock, CellCounters::default())
    }

    /// Of the jobs of one of several cells.
    pub fn of_cell(clock: Clock, counters: CellCounters) -> Self {
        Self { counters, clock, states: Arc::default() }
    }

    /// Records the result of a run of `job`. Logs the first failure and the recovery.
    pub fn note<T>(&self, job: Job, result: &Result<T, StoreError>) {
        let now = self.clock.now();
        let mut states = self.states();
        let state = &mut states[job as usize];
        match result {
            Ok(_) => {
                state.last_success_at = Some(now);
                if state.failing_since_ms.take().is_some() {
                    info!(job = job.name(), "a job works again");
                }
            }
            Err(error) => {
                self.counters.job_failed(job.name());
                state.last_error = Some((error.cause(), now));
                state.last_fault = Some(error.kind());
                state.failed_at_ms = self.clock.elapsed_ms();
                if state.failing_since_ms.is_none() {
                    state.failing_since_ms = Some(self.clock.elapsed_ms());
                    warn!(job = job.name(), %error, "a job failed");
                }
            }
        }
    }

    /// Records that another process does `job` now. That process reports its failures.
    pub fn note_left_to_others(&self, job: Job) {
        self.states()[job as usize].failing_since_ms = None;
    }

    pub fn state(&self, job: Job) -> State {
        let state = self.states()[job as usize].clone();
        let elapsed_ms = self.clock.elapsed_ms();
        let is_known = job != Job::Commit || elapsed_ms.saturating_sub(state.failed_at_ms) < COMMIT_LAPSE_MS;
        let failing_ms =
            state.failing_since_ms.filter(|_| is_known).map(|since_ms| elapsed_ms.saturating_sub(since_ms));
        State { failing_ms, ..state }
    }

    /// All jobs, in the order of [`Job::ALL`].
    pub fn all(&self) -> impl Iterator<Item = (Job, State)> {
        Job::ALL.into_iter().map(|job| (job, self.state(job)))
    }

    fn states(&self) -> MutexGuard<'_, [State; Job::ALL.len()]> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_has_its_index() {
        assert_eq!(Job::ALL.map(|job| job as usize), std::array::from_fn(|index| index));
    }

    #[test]
    fn a_job_is_broken_when_it_has_failed_for_a_minute() {
        let clock = Clock::default();
        let health = JobHealth::new(clock.clone());
        health.note(Job::Caps, &Err::<(), _>(StoreError::ReadOnly));
        clock.advance_ms(59_000);
        health.note(Job::Caps, &Err::<(), _>(StoreError::TimedOut));
        let state = health.state(Job::Caps);
        assert_eq!((state.failing_ms.is_some(), state.is_broken(), state.last_success_at), (true, false, None));
        clock.advance_ms(1000);
        assert!(health.state(Job::Caps).is_broken() && !health.state(Job::Events).is_broken());
        health.note(Job::Caps, &Ok(()));
        let state = health.state(Job::Caps);
        assert!(state.failing_ms.is_none() && state.last_success_at.is_some() && state.last_error.is_some());
    }

    #[test]
    fn commits_are_broken_while_requests_show_it() {
        let clock = Clock::default();
        let health = JobHealth::new(clock.clone());
        let fail = || health.note(Job::Commit, &Err::<(), _>(StoreError::TimedOut));
        fail();
        clock.advance_ms(59_000);
        fail();
        clock.advance_ms(1000);
        assert!(health.state(Job::Commit).is_broken());
        clock.advance_ms(59_000);
        assert!(health.state(Job::Commit).failing_ms.is_none(), "nobody has tried for a minute");
        fail();
        assert!(health.state(Job::Commit).is_broken(), "it has failed all the time");
        health.note(Job::Commit, &Ok(()));
        assert!(health.state(Job::Commit).failing_ms.is_none());
    }
}
