//! The background verification: performs the checks of the command `verify`, on one replica at a time. A run consists of
//! steps, each with a snapshot of its own that lasts five minutes at most, because vacuum cannot remove rows that a
//! snapshot may see. The job rests between steps. The result is in the table `verification`.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::job_health::{Job, JobHealth};
use crate::store::audit::{self, Check, Step};
use crate::store::pool::Pool;
use crate::store::verification::{self, CheckResult, Lease, Turn};
use crate::store::{StoreError, server};

/// The longest pause between two checks whether a run is due.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// Time limit of a step. A step that takes longer is cancelled and left out: it would take as long the next time. What it
/// reads must be verified with the command.
pub const STEP_LIMIT: Duration = Duration::from_mins(5);
/// Approximate number of rows of a step, so that it takes a second or two.
const ROWS_MAX: i64 = 500_000;
/// The rest after a step, as a multiple of the step's duration, and its maximum. The job uses one core of the database for
/// about a quarter of the time.
const RESTS_PER_STEP: u32 = 3;
const REST_MAX: Duration = Duration::from_mins(1);
/// The duration of the lease. Exceeds a step and a rest, so that no other replica starts meanwhile.
const LEASE: Duration = Duration::from_mins(10);
/// The longest pause before a failed run is retried.
const RETRY_PAUSE: Duration = Duration::from_hours(1);
/// The maximum number of findings that a step counts, and that it logs.
const COUNTED_MAX: usize = 1000;
const LOGGED_MAX: usize = 20;

#[derive(Clone, Debug)]
pub struct Verifier {
    /// Pause between two runs.
    pub interval: Duration,
    /// Time limit of a step.
    pub step_limit: Duration,
    pub pool: Pool,
    pub health: JobHealth,
}

/// The outcome of [`Verifier::run_once`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In the order of [`Check::ALL`].
    Verified(Vec<CheckResult>),
    NotDue,
    /// Another replica runs it or has taken over, or the last run failed and its pause has not passed.
    LeftToOthers,
}

impl Verifier {
    pub async fn run(self, stop: CancellationToken) {
        for run in 1.. {
            let is_running = super::pause(self.interval.min(PAUSE_MAX), &stop).await;
            // Cancellation closes the connection, and the server then ends the statement. The lease expires by itself.
            let turn = async { self.run_once().await.map(|outcome| matches!(outcome, Outcome::Verified(_))) };
            let turn = super::as_run("verify", run, turn);
            if !is_running || stop.run_until_cancelled(turn).await.is_none() {
                return;
            }
        }
    }

    /// Runs all checks if a run is due.
    pub async fn run_once(&self) -> Result<Outcome, StoreError> {
        let interval = self.interval;
        let claim = async |connection: &mut PgConnection| verification::claim(connection, interval, LEASE).await;
        let turn = self.pool.run(Instant::now() + super::STEP_LIMIT, claim).await;
        let mut lease = match turn {
            Ok(Turn::Mine(lease)) => lease,
            Ok(Turn::NotDue) => {
                self.health.note_left_to_others(Job::Verify);
                return Ok(Outcome::NotDue);
            }
            Ok(Turn::NotNow) => return Ok(Outcome::LeftToOthers),
            Err(error) => return self.fail(error),
        };
        match self.verify(&mut lease).await {
            Ok(Outcome::Verified(checks)) => {
                self.health.note(Job::Verify, &Ok(()));
                Ok(Outcome::Verified(checks))
            }
            Ok(outcome) => {
                self.health.note_left_to_others(Job::Verify);
                Ok(outcome)
            }
            Err(error) => {
                // If this fails too, the lease expires by itself.
                let _ = self.renew(&mut lease, interval.min(RETRY_PAUSE)).await;
                self.fail(error)
            }
        }
    }

    fn fail(&self, error: StoreError) -> Result<Outcome, StoreError> {
        let failed = Err(error);
        self.health.note(Job::Verify, &failed);
        failed
    }

    async fn verify(&self, lease: &mut Lease) -> Result<Outcome, StoreError> {
        let began = Instant::now();
        let mut checks =
            Check::ALL.map(|check| CheckResult { name: check.name().to_owned(), findings: 0, cancelled_steps: 0 });
        let plan = async |connection: &mut PgConnection| audit::steps(connection, ROWS_MAX).await;
        for step in self.pool.run(began + super::STEP_LIMIT, plan).await? {
            let step_began = Instant::now();
            let check = &mut checks[step.check as usize];
            match self.step(&step).await {
                Err(error) if error.is_cancellation() => {
                    check.cancelled_steps += 1;
                    warn!(check = check.name, "a step of the verification took too long and was left out");
                }
                findings => check.findings += findings?,
            }
            tokio::time::sleep((RESTS_PER_STEP * step_began.elapsed()).min(REST_MAX)).await;
            if !self.renew(lease, LEASE).await? {
                warn!("another replica took over the verification");
                return Ok(Outcome::LeftToOthers);
            }
        }
        let took = began.elapsed();
        let finish =
            async |connection: &mut PgConnection| verification::finish(connection, *lease, took, &checks).await;
        if !self.pool.run(Instant::now() + super::STEP_LIMIT, finish).await? {
            return Ok(Outcome::LeftToOthers);
        }
        let ms = took.as_millis() as u64;
        let findings: i64 = checks.iter().map(|check| check.findings).sum();
        let cancelled_steps: i64 = checks.iter().map(|check| check.cancelled_steps).sum();
        if findings > 0 {
            error!(findings, durationMs = ms, "the verification found that the database does not add up");
        } else if cancelled_steps > 0 {
            warn!(
                cancelledSteps = cancelled_steps,
                durationMs = ms,
                "the verification found nothing, but is incomplete"
            );
        } else {
            info!(durationMs = ms, "the verification found nothing");
        }
        Ok(Outcome::Verified(checks.to_vec()))
    }

    /// Returns the number of findings.
    async fn step(&self, step: &Step) -> Result<i64, StoreError> {
        // If PostgreSQL responds, its own time limit comes first.
        let deadline = Instant::now() + self.step_limit + super::STEP_LIMIT;
        let read = async |connection: &mut PgConnection| {
            let mut snapshot = server::begin_long_read(connection, self.step_limit).await?;
            let findings = audit::find(&mut snapshot, step, COUNTED_MAX).await?;
            snapshot.rollback().await?;
            Ok(findings)
        };
        let findings = self.pool.run(deadline, read).await?;
        for finding in findings.iter().take(LOGGED_MAX) {
            error!(check = step.check.name(), %finding, "the verification found an inconsistency");
        }
        Ok(findings.len() as i64)
    }

    /// Returns false if another replica has taken over.
    async fn renew(&self, lease: &mut Lease, length: Duration) -> Result<bool, StoreError> {
        let renew = async |connection: &mut PgConnection| verification::renew(connection, *lease, length).await;
        let renewed = self.pool.run(Instant::now() + super::STEP_LIMIT, renew).await?;
        Ok(renewed.map(|renewed| *lease = renewed).is_some())
    }
}
