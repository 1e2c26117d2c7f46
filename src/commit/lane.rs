//! A lane commits whatever waits in its queue, answers it, and begins again. It also decides what a failure means:
//! which requests run again, which are refused, and which have an unknown outcome.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, warn};

use crate::domain::identifiers::without_keys;
use crate::domain::refusal::Refusal;
use crate::job_health;
use crate::store::{Conflict, FaultKind, StoreError, usage};
use crate::telemetry::traces;

use super::attempt::{AttemptError, AttemptState, Done, Locking, Phase};
use super::group::{AttemptNumber, Group};
use super::job::Job;
use super::queue::{Arrivals, Entrance};
use super::session::Session;
use super::shared::Shared;

/// Number of batches that are pessimistic after a version conflict.
const PESSIMISTIC_BATCHES: u32 = 16;

/// How often a batch runs again after conflicts and deadlocks before its requests run one by one.
const RERUNS_MAX: u32 = 8;

/// Pause before requests that cannot be committed now are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Blocked requests that are tried in turn. Each waits for a lock for a short time, so one that stays blocked delays the others
/// little.
const BLOCKED_MAX: usize = 8;

pub struct Lane {
    pub shared: Arc<Shared>,
    pub arrivals: Arrivals,
    /// The lane for blocked requests. `None` in that lane itself.
    pub blocked_lane: Option<Entrance>,
    pub session: Session,
    /// Number of further batches that lock their counters at once, after a version conflict.
    pub pessimistic_batches: u32,
    pub number: AttemptNumber,
}

impl Lane {
    /// Runs until all senders are gone and all requests are answered.
    pub async fn run(mut self) {
        let mut carried: Vec<Job> = Vec::new();
        loop {
            let mut jobs = carried;
            if jobs.is_empty() && !self.arrivals.wait().await {
                return;
            }
            if self.blocked_lane.is_some() {
                self.arrivals.take(&mut jobs, self.shared.batch_max);
            } else if jobs.len() < BLOCKED_MAX {
                // One more is tried before those that are still blocked.
                let mut next = Vec::new();
                self.arrivals.take(&mut next, 1);
                next.append(&mut jobs);
                jobs = next;
            }
            carried = self.commit(jobs).await;
        }
    }

    /// Commits and answers `jobs`. Returns those to try again.
    async fn commit(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let mut carried = Vec::new();
        let mut pause = false;
        self.number.next_batch();
        let (mut groups, pairs_max): (VecDeque<Group>, usize) = match self.blocked_lane {
            Some(_) => (Group::split(jobs, self.locking()), self.shared.batch_max.min(usage::SETTLED_MAX - 1)),
            // Each may be blocked for a different reason.
            None => (Group::of(jobs, Locking::PessimisticShortWait).apart().collect(), usage::SETTLED_MAX),
        };
        while let Some(mut group) = groups.pop_front() {
            self.drop_given_up(&mut group.jobs);
            if group.jobs.is_empty() {
                continue;
            }
            let state = AttemptState::default();
            self.number.next_attempt();
            let began = traces::are_on().then(std::time::Instant::now);
            // Requests that run one by one, because one of them is blocked or fails, stay alone.
            let arrivals = (group.locking == Locking::Pessimistic).then_some(&self.arrivals);
            let ended = self.session.attempt(&mut group, &state, self.number, pairs_max, arrivals).await;
            if let Some(began) = began {
                self.number.trace(&group.jobs, began, ended.as_ref().err().map(error_type));
            }
            let error = match ended {
                Ok(done) => {
                    carried.extend(self.deliver(done, group.jobs));
                    continue;
                }
                Err(error) => error,
            };
            let fault = match error {
                AttemptError::Store(fault) => fault,
                AttemptError::Cancelled | AttemptError::UnverifiedKey => {
                    group.jobs.iter().for_each(Job::end_commit);
                    groups.push_front(group);
                    continue;
                }
                // Such a settlement takes too long for this lane.
                AttemptError::TooManyPairs(indexes) => {
                    for index in indexes.into_iter().rev() {
                        let job = group.jobs.remove(index);
                        match &self.blocked_lane {
                            Some(blocked_lane) => blocked_lane.put(job),
                            None => carried.push(job),
                        }
                    }
                    groups.push_front(group);
                    continue;
                }
            };
            let phase = state.phase();
            if phase == Phase::Commit && !fault.proves_rollback(self.shared.address.dialect) {
                self.number.span(&group.jobs).in_scope(|| {
                    warn!(error = %fault, "the outcome of a COMMIT is unknown");
                    self.note_failure(fault);
                });
                self.session.disconnect();
                self.shared.health.counters.commit_retried("connection_lost");
                carried.extend(mark_in_doubt(group.jobs, &state));
                pause = true;
                continue;
            }
            group.jobs.iter().for_each(Job::end_commit);
            let kind = fault.kind();
            match kind {
                FaultKind::Conflict(conflict) => {
                    self.shared.health.counters.commit_retried(reason(kind));
                    // Stale cached data is read the next time. If the data was not cached, the rows are locked the next
                    // time.
                    if !self.session.cache.was_stale(conflict)
                        && conflict == Conflict::Version
                        && group.locking == Locking::Optimistic
                    {
                        group.locking = Locking::Pessimistic;
                    }
                    if conflict == Conflict::Version {
                        self.pessimistic_batches = PESSIMISTIC_BATCHES;
                    }
                    carried.extend(self.again(&mut groups, group));
                }
                FaultKind::Deadlock | FaultKind::Serialization => {
                    self.shared.health.counters.commit_retried(reason(kind));
                    carried.extend(self.again(&mut groups, group));
                }
                FaultKind::Unavailable => {
                    self.session.disconnect();
                    group.reconnects += 1;
                    if group.reconnects == 1 {
                        self.shared.health.counters.commit_retried(reason(kind));
                        groups.push_front(group);
                    } else {
                        // The other groups would fail in the same way, each after another attempt to connect.
                        group.jobs.extend(groups.drain(..).flat_map(|group| group.jobs));
                        self.number.span(&group.jobs).in_scope(|| {
                            warn!(error = %fault, requests = group.jobs.len(), "the database is unavailable");
                            self.note_failure(fault);
                        });
                        carried.extend(refuse_unless_in_doubt(group.jobs));
                        pause = true;
                    }
                }
                FaultKind::LockTimeout if group.jobs.len() > 1 => prepend(&mut groups, group.apart()),
                FaultKind::LockTimeout => {
                    // An optimistic attempt may be waiting for a counter in this phase.
                    if phase == Phase::Write && group.locking != Locking::Optimistic {
                        let keyed = group.jobs.iter().filter(|job| job.request.keyed.is_some());
                        keyed.for_each(|job| job.progress.meet_twin());
                    }
                    match &self.blocked_lane {
                        Some(blocked_lane) => group.jobs.into_iter().for_each(|job| blocked_lane.put(job)),
                        None => carried.extend(group.jobs),
                    }
                }
                FaultKind::Rejected if group.jobs.len() > 1 => {
                    self.shared.health.counters.commit_retried(reason(kind));
                    prepend(&mut groups, group.apart());
                }
                FaultKind::Rejected => self.number.span(&group.jobs).in_scope(|| {
                    fail(group.jobs, &fault);
                    self.note_failure(fault);
                }),
            }
        }
        if pause {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        carried
    }

    /// Locks at once while others write the same counters, because a failed attempt costs more than the locks.
    fn locking(&mut self) -> Locking {
        if self.pessimistic_batches == 0 {
            return Locking::Optimistic;
        }
        self.pessimistic_batches -= 1;
        Locking::Pessimistic
    }

    /// Sends the answers. Returns the duplicates that must still be executed.
    fn deliver(&self, done: Done, jobs: Vec<Job>) -> Vec<Job> {
        if done.executed > 0 {
            self.shared.health.note(job_health::Job::Commit, &Ok::<_, StoreError>(()));
        }
        if !done.unpriced.is_empty() {
            self.number.span(&jobs).in_scope(|| self.shared.unpriced.note(done.unpriced));
        }
        if done.has_outbox {
            self.shared.deliveries.notify_one();
        }
        let mut left = Vec::new();
        for (job, answer) in jobs.into_iter().zip(done.answers) {
            match answer {
                Some(answer) => job.answer(answer),
                None => {
                    job.end_commit();
                    left.push(job);
                }
            }
        }
        left
    }

    /// Drops requests that were withdrawn or whose deadline has passed. A passed deadline counts as a failure.
    fn drop_given_up(&self, jobs: &mut Vec<Job>) {
        let now = std::time::Instant::now();
        let is_late = |job: &Job| job.request.deadline <= now;
        let late: Vec<Job> = jobs.extract_if(.., |job| job.is_withdrawn() || is_late(job)).filter(is_late).collect();
        if !late.is_empty() {
            self.number.span(&late).in_scope(|| self.note_failure(StoreError::Blocked));
        }
    }

    /// Runs a group again after a conflict, a limited number of times. Returns the jobs that remain after that.
    fn again(&self, groups: &mut VecDeque<Group>, mut group: Group) -> Vec<Job> {
        group.reruns += 1;
        if group.reruns <= RERUNS_MAX {
            groups.push_front(group);
        } else if group.jobs.len() > 1 {
            prepend(groups, group.apart());
        } else {
            let span = self.number.span(&group.jobs);
            span.in_scope(|| warn!("a request was rolled back {RERUNS_MAX} times in a row"));
            return refuse_unless_in_doubt(group.jobs);
        }
        Vec::new()
    }

    /// Records a failed commit for readiness and `/health/deep`.
    fn note_failure(&self, fault: StoreError) {
        self.shared.health.note(job_health::Job::Commit, &Err::<(), _>(fault));
    }
}

/// The label of a retry in the metrics.
fn reason(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Conflict(Conflict::Key) => "key_taken",
        FaultKind::Deadlock => "deadlock",
        FaultKind::Conflict(_) | FaultKind::Serialization => "serialization",
        FaultKind::LockTimeout | FaultKind::Unavailable => "connection_lost",
        FaultKind::Rejected => "poisoned",
    }
}

/// What traces call it when an attempt commits nothing.
fn error_type(error: &AttemptError) -> &'static str {
    match error {
        AttemptError::Store(fault) => match fault.kind() {
            FaultKind::LockTimeout => "lock_timeout",
            kind => reason(kind),
        },
        AttemptError::Cancelled => "cancelled",
        AttemptError::UnverifiedKey => "unverified_key",
        AttemptError::TooManyPairs(_) => "too_many_pairs",
    }
}

/// Handles a COMMIT with an unknown outcome. Requests with a key are looked up in the next batch. The others are
/// refused, because their outcome can never be known.
fn mark_in_doubt(jobs: Vec<Job>, state: &AttemptState) -> Vec<Job> {
    let executed = state.executed();
    let mut keyed = Vec::new();
    for (mut job, was_executed) in jobs.into_iter().zip(executed.jobs) {
        if job.request.keyed.is_none() {
            job.refuse(Refusal::OutcomeUnknown);
        } else {
            job.mark_in_doubt(was_executed.then_some(executed.attempt_id), executed.expires_at);
            keyed.push(job);
        }
    }
    keyed
}

fn prepend(groups: &mut VecDeque<Group>, first: impl Iterator<Item = Group>) {
    let rest = std::mem::take(groups);
    groups.extend(first.chain(rest));
}

/// Nothing of this attempt has committed. Refuses all requests but those that an earlier COMMIT left in doubt.
fn refuse_unless_in_doubt(jobs: Vec<Job>) -> Vec<Job> {
    let (in_doubt, others): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.in_doubt.is_some());
    others.into_iter().for_each(|job| job.refuse(Refusal::StoreUnavailable));
    in_doubt
}

/// A single request fails: a defect of the service, or of manually changed data.
fn fail(jobs: Vec<Job>, fault: &StoreError) {
    for job in jobs {
        let request = &job.request;
        let path = without_keys(&request.path);
        error!(requestId = request.request_id, method = request.method, %path, error = %fault,
            "a request could not be executed");
        job.give_up(Refusal::Internal);
    }
}
