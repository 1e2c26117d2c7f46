//! A lane commits whatever waits in its queue, answers it, and begins again. It also decides what a failure means:
//! which requests run again, which are refused, and which have an unknown outcome.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{error, warn};

use crate::command::{Answer, Command};
use crate::domain::identifiers::without_keys;
use crate::domain::refusal::Refusal;
use crate::job_health;
use crate::metrics;
use crate::store::server::{CommitTransaction, Interrupt};
use crate::store::totals::SHARDS;
use crate::store::{Conflict, FaultKind, StoreError, server, usage};

use super::attempt::{AttemptError, AttemptState, Done, Locking, Phase, Settings};
use super::batch::BatchAttempt;
use super::cache::ReadCache;
use super::group::{AttemptNumber, Group};
use super::job::Job;
use super::queue::{Arrivals, Entrance};
use super::shared::{LaneConnection, Shared};
use super::transaction::TransactionAttempt;

/// Number of batches that are pessimistic after a version conflict.
const PESSIMISTIC_BATCHES: u32 = 16;

/// How often a batch runs again after conflicts and deadlocks before its requests run one by one.
const RERUNS_MAX: u32 = 8;

/// Pause before requests that cannot be committed now are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Time limit for opening a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// An attempt may take this much longer than one statement before its connection is dropped.
const ATTEMPT_MARGIN: Duration = Duration::from_secs(1);

/// How long a lane waits for a cancelled statement to end, and for the server to accept the cancellation.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(1);

/// A connection that was idle for longer is pinged before use.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

pub struct Lane {
    pub shared: Arc<Shared>,
    pub arrivals: Arrivals,
    /// The lane for blocked requests. `None` in that lane itself.
    pub waiting_room: Option<Entrance>,
    pub shard: i16,
    pub rng: StdRng,
    pub connection: Option<LaneConnection>,
    pub cache: ReadCache,
    /// Number of further batches that lock their counters at once, after a version conflict.
    pub pessimistic_batches: u32,
    pub last_used: Instant,
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
            // The lane for blocked requests takes one at a time, so that each waits for few others.
            let rows_max = if self.waiting_room.is_some() { self.shared.batch_max } else { 1 };
            self.arrivals.take(&mut jobs, rows_max);
            carried = self.commit(jobs).await;
        }
    }

    /// Commits and answers `jobs`. Returns those to try again.
    async fn commit(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let mut carried = Vec::new();
        let mut pause = false;
        self.number.next_batch();
        let mut groups = match self.waiting_room {
            Some(_) => Group::split(jobs, self.locking()),
            // Each may be blocked for a different reason.
            None => Group::of(jobs, Locking::PessimisticShortWait).apart().collect(),
        };
        while let Some(mut group) = groups.pop_front() {
            self.drop_given_up(&mut group.jobs);
            if group.jobs.is_empty() {
                continue;
            }
            let state = AttemptState::default();
            let error = match self.attempt(&mut group, &state).await {
                Ok(answers) => {
                    carried.extend(deliver(group.jobs, answers));
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
                        match &self.waiting_room {
                            Some(waiting_room) => waiting_room.put(job),
                            None => carried.push(job),
                        }
                    }
                    groups.push_front(group);
                    continue;
                }
            };
            let phase = state.phase();
            if phase == Phase::Commit && !fault.proves_rollback() {
                self.number.span(&group.jobs).in_scope(|| {
                    warn!(error = %fault, "the outcome of a COMMIT is unknown");
                    self.note_failure(fault);
                });
                self.connection = None;
                metrics::commit_retried("connection_lost");
                carried.extend(mark_in_doubt(group.jobs, &state));
                pause = true;
                continue;
            }
            group.jobs.iter().for_each(Job::end_commit);
            let kind = fault.kind();
            match kind {
                FaultKind::Conflict(conflict) => {
                    metrics::commit_retried(reason(kind));
                    // Stale cached data is read the next time. If the data was not cached, the rows are locked the next
                    // time.
                    if !self.cache.was_stale(conflict)
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
                    metrics::commit_retried(reason(kind));
                    carried.extend(self.again(&mut groups, group));
                }
                FaultKind::Unavailable => {
                    self.connection = None;
                    group.reconnects += 1;
                    if group.reconnects == 1 {
                        metrics::commit_retried(reason(kind));
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
                    match &self.waiting_room {
                        Some(waiting_room) => group.jobs.into_iter().for_each(|job| waiting_room.put(job)),
                        None => carried.extend(group.jobs),
                    }
                }
                FaultKind::Rejected if group.jobs.len() > 1 => {
                    metrics::commit_retried(reason(kind));
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

    /// Makes one attempt, which ends in bounded time. Before its commit it may take slightly longer than one statement;
    /// its commit must end at the first deadline of the group. A statement that is still running then is cancelled. If
    /// it does not end, the server process is terminated and the connection dropped.
    async fn attempt(&mut self, group: &mut Group, state: &AttemptState) -> Result<Vec<Option<Answer>>, AttemptError> {
        let shared = self.shared.clone();
        self.number.next_attempt();
        if self.last_used.elapsed() > TRUSTED_IDLE {
            self.drop_if_dead().await;
        }
        self.last_used = Instant::now();
        if self.connection.is_none() {
            // A new connection may lead to another server, for which the cached data may be wrong.
            self.cache = ReadCache::default();
            self.connection = Some(shared.connect(CONNECT_LIMIT).await?);
        }
        let LaneConnection { connection, backend } = self.connection.as_mut().expect("it was just made");
        let backend = *backend;
        let deadlines = || group.jobs.iter().map(|job| Instant::from_std(job.request.deadline));
        let earliest = deadlines().min().expect("a group is never empty");
        let latest = deadlines().max().expect("a group is never empty");
        let limit = match group.locking {
            Locking::Exclusive => latest,
            _ => latest.min(Instant::now() + shared.statement_limit + ATTEMPT_MARGIN),
        };

        let settings = Settings {
            now: shared.clock.now(),
            limits: shared.runtime_config.limits(),
            ttl_ms: shared.ttl_ms,
            require_registered_services: shared.require_registered_services,
            shard: self.shard,
            locking: group.locking,
            pairs_max: if self.waiting_room.is_some() {
                shared.batch_max.min(usage::SETTLED_MAX - 1)
            } else {
                usage::SETTLED_MAX
            },
        };
        // Requests that run one by one, because one of them is blocked or fails, stay alone.
        let arrivals = (group.locking == Locking::Pessimistic).then_some((&self.arrivals, shared.batch_max));
        let (rng, cache) = (&mut self.rng, &mut self.cache);
        let full = &*shared.full.now();
        let began = std::time::Instant::now();
        let (ended, cancelled) = {
            let run = async {
                state.set(Phase::Read);
                let mut transaction = CommitTransaction::on(connection);
                let ended = if let [job] = group.jobs.as_slice()
                    && let Command::Transactional(command) = &job.request.command
                {
                    let exclusive = job.is_exclusive().then(|| latest.saturating_duration_since(Instant::now()));
                    TransactionAttempt { settings, rng, state, exclusive, full }
                        .run(&mut transaction, job, command)
                        .await
                } else {
                    BatchAttempt { settings, rng, state, cache, full, arrivals }
                        .run(&mut transaction, &mut group.jobs)
                        .await
                };
                transaction.roll_back().await;
                ended
            };
            let mut run = pin!(run);
            let mut ended = timeout_at(earliest.min(limit), &mut run).await;
            if ended.is_err() && state.phase() != Phase::Commit {
                // The commit leaves out requests whose deadline has passed.
                ended = timeout_at(limit, &mut run).await;
            }
            let mut cancelled = Ok(());
            if ended.is_err() {
                let cancel = shared.interrupt(backend, Interrupt::Cancel, INTERRUPT_LIMIT);
                (ended, cancelled) = tokio::join!(timeout(INTERRUPT_LIMIT, &mut run), cancel);
            }
            (ended, cancelled)
        };
        self.note_interrupt(&group.jobs, cancelled);
        if let Ok(ended) = ended {
            return ended.map(|done| self.note(done, &group.jobs, began.elapsed()));
        }
        // The server process may still execute what it received, and may keep the rows of this shard locked until it
        // ends.
        let terminated = shared.interrupt(backend, Interrupt::Terminate, INTERRUPT_LIMIT).await;
        self.note_interrupt(&group.jobs, terminated);
        self.connection = None;
        self.shard = (self.shard + 1) % SHARDS;
        Err(StoreError::TimedOut.into())
    }
}

impl Lane {
    /// Locks at once while others write the same counters, because a failed attempt costs more than the locks.
    fn locking(&mut self) -> Locking {
        if self.pessimistic_batches == 0 {
            return Locking::Optimistic;
        }
        self.pessimistic_batches -= 1;
        Locking::Pessimistic
    }

    /// Records a committed attempt. Only now is it certain what is stored.
    fn note(&mut self, done: Done, jobs: &[Job], took: Duration) -> Vec<Option<Answer>> {
        done.written.iter().for_each(|(id, counter)| self.cache.note_counter(id, *counter));
        if done.executed > 0 {
            metrics::committed(done.executed, took);
            self.shared.health.note(job_health::Job::Commit, &Ok::<_, StoreError>(()));
        }
        if !done.unpriced.is_empty() {
            self.number.span(jobs).in_scope(|| self.shared.unpriced.note(done.unpriced));
        }
        if done.has_outbox {
            self.shared.deliveries.notify_one();
        }
        done.answers
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

    fn note_interrupt(&self, jobs: &[Job], interrupted: Result<(), StoreError>) {
        if let Err(error) = interrupted {
            let span = self.number.span(jobs);
            span.in_scope(|| warn!(%error, "a statement that took too long could not be ended"));
        }
    }

    /// Records a failed commit for readiness and `/health/deep`.
    fn note_failure(&self, fault: StoreError) {
        self.shared.health.note(job_health::Job::Commit, &Err::<(), _>(fault));
    }

    /// A connection may have died while it was idle. Finding that out with a statement that commits would leave its
    /// requests in doubt needlessly.
    async fn drop_if_dead(&mut self) {
        if let Some(LaneConnection { connection, .. }) = &mut self.connection {
            let answer = timeout(CONNECT_LIMIT, server::ping(connection)).await;
            if !matches!(answer, Ok(Ok(()))) {
                self.connection = None;
            }
        }
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

/// Sends the answers. Returns the duplicates that must still be executed.
fn deliver(jobs: Vec<Job>, answers: Vec<Option<Answer>>) -> Vec<Job> {
    let mut left = Vec::new();
    for (job, answer) in jobs.into_iter().zip(answers) {
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
        error!(requestId = request.request_id, method = request.method, path, error = %fault,
            "a request could not be executed");
        job.give_up(Refusal::Internal);
    }
}
