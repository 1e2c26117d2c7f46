//! A request in a lane. Its handler and the lane share one state: until just before COMMIT the handler can withdraw the
//! request, and then knows that nothing has changed.

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

/// State that the handler and the lane share.
#[derive(Debug, Default)]
pub struct Progress {
    state: AtomicU8,
    /// Another request with the same key is or was in progress.
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

    /// Withdraws the request at its deadline. False if its commit has begun.
    pub fn withdraw(&self) -> bool {
        self.state.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire) != Err(COMMITTING)
    }

    /// The refusal for a request without an answer. It states what is certain. A request that has not begun to commit
    /// is withdrawn first.
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

/// What commits with an unknown outcome may have stored for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// The attempts that executed this request. Empty for a duplicate of another request.
    pub attempt_ids: Vec<i64>,
    /// When the record of the first of them expires.
    pub expires_at: Timestamp,
}

/// A request in a lane.
#[derive(Debug)]
pub struct Job {
    /// Boxed, because jobs are moved from list to list.
    pub request: Box<Request>,
    pub progress: Arc<Progress>,
    /// Present after a COMMIT with an unknown outcome.
    pub in_doubt: Option<InDoubt>,
    answer: oneshot::Sender<Answer>,
    _presence: Option<Presence>,
}

impl Job {
    pub fn new(request: Box<Request>, presence: Option<Presence>) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let progress = Arc::default();
        (Self { request, progress, in_doubt: None, answer, _presence: presence }, answered)
    }

    /// The share of a batch that it takes.
    pub fn rows(&self) -> usize {
        self.request.command.rows()
    }

    /// Called before COMMIT: from here on the request cannot be withdrawn. False if it was.
    pub fn begin_commit(&self) -> bool {
        self.progress.state.compare_exchange(WAITING, COMMITTING, Ordering::AcqRel, Ordering::Acquire) != Err(WITHDRAWN)
    }

    /// The COMMIT has certainly failed. A request that an earlier COMMIT left in doubt stays in doubt.
    pub fn end_commit(&self) {
        if self.in_doubt.is_none() {
            let _ = self.progress.state.compare_exchange(COMMITTING, WAITING, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Whether this attempt executed this request.
    pub fn is_own_attempt(&self, attempt_id: i64) -> bool {
        self.in_doubt.as_ref().is_some_and(|doubt| doubt.attempt_ids.contains(&attempt_id))
    }

    /// The outcome of a COMMIT is unknown. `attempt_id` is present if that attempt executed this request.
    pub fn mark_in_doubt(&mut self, attempt_id: Option<i64>, expires_at: Timestamp) {
        let doubt = self.in_doubt.get_or_insert(InDoubt { attempt_ids: Vec::new(), expires_at });
        doubt.attempt_ids.extend(attempt_id);
    }

    pub fn is_withdrawn(&self) -> bool {
        self.progress.state.load(Ordering::Acquire) == WITHDRAWN
    }

    /// If the client has disconnected, nobody receives the answer. It is stored nevertheless.
    pub fn answer(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }

    pub fn refuse(self, refusal: Refusal) {
        self.answer(Answer::Refused(refusal));
    }

    /// Refuses a request that this attempt did not change. If an earlier COMMIT is in doubt, only that can be stated.
    pub fn give_up(self, refusal: Refusal) {
        let is_in_doubt = self.in_doubt.is_some();
        self.refuse(if is_in_doubt { Refusal::OutcomeUnknown } else { refusal });
    }
}
