//! One attempt to commit, of a batch or of a single command: what both kinds share.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::command::Answer;
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::runtime_config::Limits;
use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::usage::{Counter, CounterId};

use super::job::Job;

/// How far an attempt got: what a failure means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing can have been committed.
    Read,
    /// The same, and if the attempt waits it is for keys: it has locked its counters.
    Write,
    /// The statement that commits was sent.
    Commit,
}

/// The state of an attempt, for the lane that watches it.
#[derive(Debug)]
pub struct AttemptState {
    phase: AtomicU8,
    executed: Mutex<Executed>,
}

impl Default for AttemptState {
    fn default() -> Self {
        let none = Executed { attempt_id: 0, expires_at: Timestamp::from_ms(0), jobs: Vec::new() };
        Self { phase: AtomicU8::new(Phase::Read as u8), executed: Mutex::new(none) }
    }
}

/// What the attempt commits.
#[derive(Clone, Debug)]
pub struct Executed {
    pub attempt_id: i64,
    pub expires_at: Timestamp,
    /// Of each job, whether the attempt executed it.
    pub jobs: Vec<bool>,
}

impl AttemptState {
    pub fn phase(&self) -> Phase {
        [Phase::Read, Phase::Write, Phase::Commit][usize::from(self.phase.load(Ordering::Acquire))]
    }

    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The moment before COMMIT: from here on no request can be withdrawn.
    pub fn claim(&self, jobs: &[Job], executed: Executed) -> Result<(), AttemptError> {
        let now = Instant::now();
        if !jobs.iter().all(|job| job.request.deadline > now && job.begin_commit()) {
            return Err(AttemptError::Cancelled);
        }
        *self.executed.lock().unwrap_or_else(PoisonError::into_inner) = executed;
        self.set(Phase::Commit);
        Ok(())
    }

    pub fn executed(&self) -> Executed {
        self.executed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why an attempt changed nothing, or in [`Phase::Commit`] perhaps something.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A handler gave up while the batch ran. Without that request it can run again.
    #[error("a request was withdrawn")]
    Cancelled,
    /// A key was presumed to be new, and nothing that is written would tell if it is not. The batch runs again, and looks.
    #[error("a key was not looked up")]
    UnverifiedKey,
    /// The jobs at these indexes settle more pairs than a batch may have.
    #[error("more pairs than a batch may have")]
    TooManyPairs(Vec<usize>),
}

/// How an attempt meets others that want the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Reads without locking, and begins again if what it read has changed.
    Optimistic,
    /// Locks the counters before it reads them.
    Pessimistic,
    /// The same for one request that is known to be blocked: it waits only briefly, so that others get their turn.
    PessimisticShortWait,
    /// For a reset: no other commit is under way.
    Exclusive,
}

/// How long an attempt waits for a lock: longer than a commit takes, so that replicas take turns.
pub const LOCK_TIMEOUT: &str = "500ms";

/// The same for a reset. All commits queue behind it, so it gives up before they do, and tries again.
const EXCLUSIVE_LOCK_TIMEOUT: &str = "200ms";

impl Locking {
    pub fn lock_timeout(self) -> &'static str {
        match self {
            Self::Optimistic | Self::Pessimistic => LOCK_TIMEOUT,
            Self::PessimisticShortWait => "50ms",
            Self::Exclusive => EXCLUSIVE_LOCK_TIMEOUT,
        }
    }
}

/// What an attempt is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub now: Timestamp,
    pub limits: Limits,
    pub ttl_ms: i64,
    pub require_registered_services: bool,
    /// Which rows of the totals this lane writes.
    pub shard: i16,
    pub locking: Locking,
    /// Most pairs of the agents that the batch settles.
    pub pairs_max: usize,
}

/// What an attempt did.
#[derive(Debug, Default)]
pub struct Done {
    /// One answer for each job, committed. None for a duplicate whose leader left no record: it has to execute later.
    pub answers: Vec<Option<Answer>>,
    /// How many of the jobs were executed, and not answered from what is stored.
    pub executed: usize,
    pub has_outbox: bool,
    /// The service of each settlement without a price.
    pub unpriced: Vec<(Tenant, ServiceId)>,
    /// The counters as they are stored now.
    pub written: Vec<(CounterId, Counter)>,
}

/// Drawn by each attempt: two writes never share a version, and a record tells which attempt stored it.
pub fn draw_attempt_id(rng: &mut StdRng) -> i64 {
    rng.random_range(1..i64::MAX)
}
