//! A request on its way through a lane, and the one question its two ends must agree on: is it still wanted?
//! Until the moment before COMMIT its handler can withdraw it, and then knows that nothing was changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::oneshot;

use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::metrics;

use super::in_flight::Presence;
use crate::command::{Answer, Request};

const WAITING: u8 = 0;
const COMMITTING: u8 = 1;
const WITHDRAWN: u8 = 2;

/// What handler and lane share.
#[derive(Debug, Default)]
pub struct Progress {
    state: AtomicU8,
    /// Another request with the same key is, or was, under way.
    met_twin: AtomicBool,
}

impl Progress {
    pub fn meet_twin(&self) {
        if !self.met_twin.swap(true, Ordering::AcqRel) {
            metrics::twin_wait_began();
        }
    }

    pub fn has_met_twin(&self) -> bool {
        self.met_twin.load(Ordering::Acquire)
    }

    /// Gives up at the deadline. False if the commit is under way.
    pub fn withdraw(&self) -> bool {
        self.state.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire) != Err(COMMITTING)
    }

    /// What a request is told that gets no answer: as much as is certain. Nobody can commit it afterwards who had not
    /// begun to.
    pub fn refusal(&self) -> Refusal {
        match (self.has_met_twin(), self.withdraw()) {
            (true, _) => Refusal::KeyInFlight,
            (false, true) => Refusal::StoreUnavailable,
            (false, false) => Refusal::OutcomeUnknown,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if *self.met_twin.get_mut() {
            metrics::twin_wait_ended();
        }
    }
}

/// What commits of unknown outcome would have stored for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// The attempts that executed it; none for a duplicate of a request that was.
    pub attempt_ids: Vec<i64>,
    /// When the record of the first of them expires.
    pub expires_at: Timestamp,
}

/// A request in a lane.
#[derive(Debug)]
pub struct Job {
    pub request: Request,
    pub progress: Arc<Progress>,
    /// Set after a COMMIT whose outcome is unknown.
    pub in_doubt: Option<InDoubt>,
    answer: oneshot::Sender<Answer>,
    _presence: Option<Presence>,
}

impl Job {
    pub fn new(request: Request, presence: Option<Presence>) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let progress = Arc::default();
        (Self { request, progress, in_doubt: None, answer, _presence: presence }, answered)
    }

    /// How much of a batch it takes.
    pub fn rows(&self) -> usize {
        self.request.command.rows()
    }

    /// From here on the job may count, whatever its handler does. False if it was withdrawn.
    pub fn begin_commit(&self) -> bool {
        self.progress.state.compare_exchange(WAITING, COMMITTING, Ordering::AcqRel, Ordering::Acquire) != Err(WITHDRAWN)
    }

    /// The COMMIT did not happen, for certain. A job that is unsettled from an earlier one stays so.
    pub fn end_commit(&self) {
        if self.in_doubt.is_none() {
            let _ = self.progress.state.compare_exchange(COMMITTING, WAITING, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Whether this request was executed by that attempt.
    pub fn is_own_attempt(&self, attempt_id: i64) -> bool {
        self.in_doubt.as_ref().is_some_and(|doubt| doubt.attempt_ids.contains(&attempt_id))
    }

    /// The outcome of a COMMIT is unknown. `attempt_id`: it executed this request.
    pub fn mark_in_doubt(&mut self, attempt_id: Option<i64>, expires_at: Timestamp) {
        let doubt = self.in_doubt.get_or_insert(InDoubt { attempt_ids: Vec::new(), expires_at });
        doubt.attempt_ids.extend(attempt_id);
    }

    pub fn is_withdrawn(&self) -> bool {
        self.progress.state.load(Ordering::Acquire) == WITHDRAWN
    }

    /// A handler that is gone no longer listens; the answer is then only in the database.
    pub fn answer(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }

    pub fn refuse(self, refusal: Refusal) {
        self.answer(Answer::Refused(refusal));
    }

    /// Refuses what this attempt did not change. An earlier COMMIT in doubt stays so: then nothing else can be said.
    pub fn give_up(self, refusal: Refusal) {
        let is_in_doubt = self.in_doubt.is_some();
        self.refuse(if is_in_doubt { Refusal::OutcomeUnknown } else { refusal });
    }
}
