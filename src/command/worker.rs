//! A lane: takes whatever waits, commits it, answers it, and begins again. What goes wrong is sorted here: which
//! requests run again, which fail, and which outcome nobody can know.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{error, warn};

use crate::domain::identifiers::without_keys;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::job_health;
use crate::metrics;
use crate::store::server::Interrupt;
use crate::store::totals::SHARDS;
use crate::store::{FaultKind, StoreError, server};

use super::Answer;
use super::batch::{Attempt, Manners, Phase, PhaseCell, Setback};
use super::committer::{LaneConnection, Shared};
use super::job::Job;
use super::memory::Memory;
use super::queue::{Arrivals, Entrance};

/// Runs of one batch after deadlocks, taken keys and withdrawals, before its members are tried one by one.
const RERUNS_MAX: u32 = 8;

/// Pause before what could not be done now is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How much longer than one statement an attempt may take before its connection is given up.
const ATTEMPT_MARGIN: Duration = Duration::from_secs(1);

/// How long a lane waits for the answer of a statement that it had cancelled, and for the server to take the order.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(1);

/// How long a connection may have been idle and still be used without asking whether it works.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

pub struct Worker {
    pub shared: Arc<Shared>,
    pub arrivals: Arrivals,
    /// Where blocked requests go. None: this is the waiting room itself.
    pub waiting_room: Option<Entrance>,
    pub shard: i16,
    pub dice: StdRng,
    pub connection: Option<LaneConnection>,
    pub memory: Memory,
    pub last_used: Instant,
}

/// Requests that run together.
struct Group {
    jobs: Vec<Job>,
    manners: Manners,
    reruns: u32,
    reconnects: u32,
    /// The moment of its latest attempt.
    began_at: Timestamp,
}

impl Group {
    fn of(jobs: Vec<Job>) -> Self {
        Self { jobs, manners: Manners::Hopeful, reruns: 0, reconnects: 0, began_at: Timestamp::from_ms(0) }
    }

    /// In order, with those apart that share their transaction with nobody.
    fn split(jobs: Vec<Job>) -> VecDeque<Self> {
        let mut groups: VecDeque<Self> = VecDeque::new();
        for job in jobs {
            let is_alone = job.request.command.runs_alone();
            match groups.back_mut() {
                Some(group) if !is_alone && group.manners != Manners::Alone => group.jobs.push(job),
                _ => {
                    let manners = if is_alone { Manners::Alone } else { Manners::Hopeful };
                    groups.push_back(Self { manners, ..Self::of(vec![job]) });
                }
            }
        }
        groups
    }

    /// The members, each by itself.
    fn apart(self) -> impl Iterator<Item = Self> {
        self.jobs.into_iter().map(|job| {
            let manners = if job.request.command.runs_alone() { Manners::Alone } else { Manners::Brief };
            Self { manners, ..Self::of(vec![job]) }
        })
    }
}

impl Worker {
    /// Runs until all senders are gone and everything that was sent is answered.
    pub async fn run(mut self) {
        let mut carried: Vec<Job> = Vec::new();
        loop {
            let mut jobs = carried;
            if jobs.is_empty() && !self.arrivals.wait().await {
                return;
            }
            self.arrivals.take(&mut jobs, self.shared.batch_max);
            carried = self.commit(jobs).await;
        }
    }

    /// Commits and answers `jobs`. Returns those that have to be tried again.
    async fn commit(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        let mut carried = Vec::new();
        let mut pause = false;
        let mut groups = match self.waiting_room {
            Some(_) => Group::split(jobs),
            // Each of them is known to be blocked, perhaps for reasons of its own.
            None => Group::of(jobs).apart().collect(),
        };
        while let Some(mut group) = groups.pop_front() {
            if drop_given_up(&mut group.jobs) {
                self.note_failure(StoreError::Blocked);
            }
            if group.jobs.is_empty() {
                continue;
            }
            let phase = PhaseCell::default();
            let setback = match self.attempt(&mut group, &phase).await {
                Ok(answers) => {
                    carried.extend(deliver(group.jobs, answers));
                    continue;
                }
                Err(setback) => setback,
            };
            let Setback::Store(fault) = setback else {
                group.jobs.iter().for_each(Job::end_commit);
                groups.push_front(group);
                continue;
            };
            let phase = phase.get();
            if phase == Phase::Commit && !fault.proves_rollback() {
                warn!(error = %fault, "the outcome of a COMMIT is unknown");
                self.note_failure(fault);
                self.connection = None;
                metrics::commit_retried("connection_lost");
                carried.extend(unsettle(group.jobs, self.shared.expiry_of(group.began_at)));
                pause = true;
                continue;
            }
            group.jobs.iter().for_each(Job::end_commit);
            let kind = fault.kind();
            let misled = matches!(kind, FaultKind::Moved | FaultKind::KeyTaken) && self.memory.misled();
            match kind {
                // Read this time: what moved may have done so long ago.
                FaultKind::Moved if misled => {
                    metrics::commit_retried(reason(kind));
                    carried.extend(again(&mut groups, group));
                }
                FaultKind::Moved if group.manners == Manners::Hopeful => {
                    metrics::commit_retried(reason(kind));
                    group.manners = Manners::Locking;
                    carried.extend(again(&mut groups, group));
                }
                FaultKind::Moved | FaultKind::KeyTaken | FaultKind::Deadlock | FaultKind::Serialization => {
                    metrics::commit_retried(reason(kind));
                    carried.extend(again(&mut groups, group));
                }
                FaultKind::Unavailable => {
                    self.connection = None;
                    group.reconnects += 1;
                    if group.reconnects == 1 {
                        metrics::commit_retried(reason(kind));
                        groups.push_front(group);
                    } else {
                        warn!(error = %fault, requests = group.jobs.len(), "the database is unavailable");
                        self.note_failure(fault);
                        carried.extend(refuse_unless_unsettled(group.jobs));
                        // The rest would meet the same fate, one connection attempt after the other.
                        for group in groups.drain(..) {
                            carried.extend(refuse_unless_unsettled(group.jobs));
                        }
                        pause = true;
                    }
                }
                FaultKind::Blocked if group.jobs.len() > 1 => prepend(&mut groups, group.apart()),
                FaultKind::Blocked => {
                    if phase == Phase::Write {
                        let keyed = group.jobs.iter().filter(|job| job.request.keyed.is_some());
                        keyed.for_each(|job| job.progress.meet_twin());
                    }
                    match &self.waiting_room {
                        Some(waiting_room) => group.jobs.into_iter().for_each(|job| waiting_room.put(job)),
                        None => carried.extend(group.jobs),
                    }
                }
                FaultKind::Poisoned if group.jobs.len() > 1 => {
                    metrics::commit_retried(reason(kind));
                    prepend(&mut groups, group.apart());
                }
                FaultKind::Poisoned => {
                    fail(group.jobs, &fault);
                    self.note_failure(fault);
                }
            }
        }
        if pause {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        carried
    }

    /// One attempt, which ends in bounded time whatever the database does. Until it commits it may take as long as a
    /// statement and a little more; its commit ends at the first deadline of the group. A statement that does not end by
    /// then is cancelled; one that does not answer to that either is given up with its connection.
    async fn attempt(&mut self, group: &mut Group, phase: &PhaseCell) -> Result<Vec<Option<Answer>>, Setback> {
        let shared = self.shared.clone();
        if self.last_used.elapsed() > TRUSTED_IDLE {
            self.drop_if_dead().await;
        }
        self.last_used = Instant::now();
        if self.connection.is_none() {
            // Behind another connection there may be another database, which does not know what the former one said.
            self.memory = Memory::default();
            self.connection = Some(shared.connect(CONNECT_LIMIT).await?);
        }
        let LaneConnection { connection, backend } = self.connection.as_mut().expect("it was just made");
        let deadlines = || group.jobs.iter().map(|job| Instant::from_std(job.request.deadline));
        let earliest = deadlines().min().expect("a group is never empty");
        let latest = deadlines().max().expect("a group is never empty");
        let limit = match group.manners {
            Manners::Alone => latest,
            _ => latest.min(Instant::now() + shared.statement_limit + ATTEMPT_MARGIN),
        };
        group.began_at = shared.clock.now();
        let attempt = Attempt {
            now: group.began_at,
            limits: shared.limits.now(),
            ttl_ms: shared.ttl_ms,
            require_registered_services: shared.require_registered_services,
            shard: self.shard,
            manners: group.manners,
            dice: &mut self.dice,
            phase,
            memory: &mut self.memory,
            deliveries: &shared.deliveries,
            unpriced: &shared.unpriced,
            health: &shared.health,
        };
        let ended = {
            let mut run = pin!(attempt.run(connection, &group.jobs));
            let mut ended = timeout_at(earliest.min(limit), &mut run).await;
            if ended.is_err() && phase.get() != Phase::Commit {
                // Those whose deadline has passed are left out when it comes to commit.
                ended = timeout_at(limit, &mut run).await;
            }
            if ended.is_err() {
                let cancel = shared.interrupt(*backend, Interrupt::Cancel, INTERRUPT_LIMIT);
                (ended, ()) = tokio::join!(timeout(INTERRUPT_LIMIT, &mut run), cancel);
            }
            ended
        };
        if let Ok(ended) = ended {
            return ended;
        }
        // The server process may yet come to what it was sent, and may keep the rows of this shard locked until it ends.
        shared.interrupt(*backend, Interrupt::Terminate, INTERRUPT_LIMIT).await;
        self.connection = None;
        self.shard = (self.shard + 1) % SHARDS;
        Err(StoreError::TimedOut.into())
    }
}

impl Worker {
    /// Notes what kept a request from being committed, for those who watch the service.
    fn note_failure(&self, fault: StoreError) {
        self.shared.health.note(job_health::Job::Commit, &Err::<(), _>(fault));
    }

    /// A connection may die while nobody uses it. To find that out with the statement that commits would leave a request
    /// in doubt that was never sent.
    async fn drop_if_dead(&mut self) {
        if let Some(LaneConnection { connection, .. }) = &mut self.connection {
            let answer = timeout(CONNECT_LIMIT, server::ping(connection)).await;
            if !matches!(answer, Ok(Ok(()))) {
                self.connection = None;
            }
        }
    }
}

/// What the metrics call a fault that is tried again.
fn reason(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::KeyTaken => "key_taken",
        FaultKind::Deadlock => "deadlock",
        FaultKind::Moved | FaultKind::Serialization => "serialization",
        FaultKind::Blocked | FaultKind::Unavailable => "connection_lost",
        FaultKind::Poisoned => "poisoned",
    }
}

/// After a COMMIT of unknown outcome. Keyed requests are carried until the database tells; of the others nobody can ever
/// know.
fn unsettle(jobs: Vec<Job>, expiry: Timestamp) -> Vec<Job> {
    let mut keyed = Vec::new();
    for mut job in jobs {
        if job.request.keyed.is_none() {
            job.refuse(Refusal::OutcomeUnknown);
        } else {
            job.unsettled = Some(expiry);
            keyed.push(job);
        }
    }
    keyed
}

/// Forgets jobs whose handlers gave up, and those nobody waits for any more. Says whether the deadline of one has passed.
fn drop_given_up(jobs: &mut Vec<Job>) -> bool {
    let now = std::time::Instant::now();
    let is_late = jobs.iter().any(|job| job.request.deadline <= now);
    jobs.retain(|job| !job.is_withdrawn() && job.request.deadline > now);
    is_late
}

/// Hands out the answers. Returns the twins that still have to run.
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

/// Runs a group again that lost against somebody else, for a while. Returns what is left when that never ends.
fn again(groups: &mut VecDeque<Group>, mut group: Group) -> Vec<Job> {
    group.reruns += 1;
    if group.reruns <= RERUNS_MAX {
        groups.push_front(group);
    } else if group.jobs.len() > 1 {
        prepend(groups, group.apart());
    } else {
        warn!("a request was rolled back {RERUNS_MAX} times in a row");
        return refuse_unless_unsettled(group.jobs);
    }
    Vec::new()
}

fn prepend(groups: &mut VecDeque<Group>, first: impl Iterator<Item = Group>) {
    let rest = std::mem::take(groups);
    groups.extend(first.chain(rest));
}

/// Nothing of this attempt was committed, and it ends here. Only jobs with an earlier COMMIT in doubt go on.
fn refuse_unless_unsettled(jobs: Vec<Job>) -> Vec<Job> {
    let (unsettled, settled): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.unsettled.is_some());
    settled.into_iter().for_each(|job| job.refuse(Refusal::StoreUnavailable));
    unsettled
}

/// One request alone breaks something: our fault, or a database that was changed by hand.
fn fail(jobs: Vec<Job>, fault: &StoreError) {
    for job in jobs {
        let request = &job.request;
        let path = without_keys(&request.path);
        error!(requestId = request.request_id, method = request.method, path, error = %fault,
            "a request could not be executed");
        job.give_up(Refusal::Internal);
    }
}
