//! One attempt to commit: what batches and single commands have in common.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::command::Answer;
use crate::domain::caller::Tenant;
use crate::domain::cell::Dialect;
use crate::domain::names::ServiceId;
use crate::domain::runtime_config::Limits;
use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::usage::{Counter, CounterId};

use super::job::Job;

/// How far an attempt got. The meaning of a failure depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing can have committed.
    Read,
    /// Nothing can have committed. A pessimistic attempt holds its counters, so a lock wait is for idempotency keys.
    Write,
    /// The statement that commits was sent.
    Commit,
}

/// The state of an attempt, shared with the lane that supervises it.
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

/// What the attempt is about to commit.
#[derive(Clone, Debug)]
pub struct Executed {
    pub attempt_id: i64,
    pub expires_at: Timestamp,
    /// For each job, whether the attempt executed it.
    pub jobs: Vec<bool>,
}

impl AttemptState {
    pub fn phase(&self) -> Phase {
        [Phase::Read, Phase::Write, Phase::Commit][usize::from(self.phase.load(Ordering::Acquire))]
    }

    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Called just before COMMIT: from here on no request can be withdrawn.
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

/// Why an attempt failed. It changed nothing, except perhaps in [`Phase::Commit`].
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A request was withdrawn while the batch ran. The batch can run again without it.
    #[error("a request was withdrawn")]
    Cancelled,
    /// A key was assumed to be new, and the write cannot check that. The batch runs again and reads the key.
    #[error("a key was not looked up")]
    UnverifiedKey,
    /// The jobs at these indexes settle more pairs than a batch may have.
    #[error("more pairs than a batch may have")]
    TooManyPairs(Vec<usize>),
}

/// How an attempt competes with other transactions for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Reads without locks. Fails if the data has changed when it writes.
    Optimistic,
    /// Locks the counters before it reads them.
    Pessimistic,
    /// Like `Pessimistic`, for one request that is known to be blocked. The wait is short, so that other requests get
    /// their turn.
    PessimisticShortWait,
    /// For a reset: no other commit runs at the same time.
    Exclusive,
}

/// Maximum wait for a lock. Longer than a commit takes, so that replicas take turns.
pub const LOCK_TIMEOUT: &str = "500ms";

/// Maximum wait of a reset. All commits queue behind it, so it gives up before they do, and tries again.
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

/// The parameters of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub dialect: Dialect,
    pub now: Timestamp,
    pub limits: Limits,
    pub ttl_ms: i64,
    pub require_registered_services: bool,
    /// The shard of the totals that this lane writes.
    pub shard: i16,
    pub locking: Locking,
    /// Maximum number of pairs of the agents that the batch settles.
    pub pairs_max: usize,
}

/// The result of a successful attempt.
#[derive(Debug, Default)]
pub struct Done {
    /// One committed answer for each job. `None` for a duplicate whose leader stored no response: it must be executed.
    pub answers: Vec<Option<Answer>>,
    /// Number of jobs that were executed rather than answered from stored responses.
    pub executed: usize,
    pub has_outbox: bool,
    /// The service of each settlement without a price.
    pub unpriced: Vec<(Tenant, ServiceId)>,
    /// The counters as they are stored now.
    pub written: Vec<(CounterId, Counter)>,
}

/// Each attempt draws an id. It is the version of the counters that the attempt writes, so no two writes share a
/// version, and it identifies the records that the attempt stored.
pub fn draw_attempt_id(rng: &mut StdRng) -> i64 {
    rng.random_range(1..i64::MAX)
}
