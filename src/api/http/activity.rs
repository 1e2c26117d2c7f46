//! What a connection is doing, as its socket, its bodies and its service see it, and until when it may.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::settings::http_limits::HttpLimits;

/// What is left of a half-sent head, or of a body that is discarded, when a drain begins: enough for one on its way, too
/// little to hold the drain up.
const REST_WHILE_DRAINING: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No byte of the next request has come.
    Idle { since: Instant },
    /// A head has begun.
    Head { since: Instant },
    /// A request is under way. It has a deadline of its own.
    Busy,
    /// Its answer is on its way out.
    Answering(Answering),
    /// The answer is out; what the client still sends is discarded.
    Lingering { since: Instant, heard: Instant, discarded: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answering {
    since: Instant,
    /// None for a stream.
    size: Option<u64>,
    sent: u64,
    body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Open,
    /// All of it was handed to hyper.
    Complete,
    Broken,
}

/// Shared by the parts of one connection.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    state: State,
    /// Whether a request has come whole.
    is_request_complete: bool,
    /// The connection ends after this answer, so nothing that comes is a request.
    is_last_answer: bool,
}

impl Activity {
    pub fn new() -> Self {
        let state = State::Idle { since: Instant::now() };
        Self(Arc::new(Mutex::new(Inner { state, is_request_complete: true, is_last_answer: false })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> State {
        self.inner().state
    }

    /// When the connection has to end, or to go on. None while a request is under way.
    pub fn due(&self, limits: &HttpLimits, drains_since: Option<Instant>) -> Option<Instant> {
        let latest = |due: Instant| drains_since.map_or(due, |drain| due.min(drain + REST_WHILE_DRAINING));
        match self.state() {
            State::Busy => None,
            State::Head { since } => Some(latest(since + limits.head_timeout)),
            State::Idle { since } => Some(since + limits.keepalive_timeout),
            State::Answering(Answering { since, size, sent, .. }) => {
                Some(since + limits.answer_time(size.unwrap_or(sent)))
            }
            State::Lingering { since, heard, .. } => {
                Some(latest((since + limits.linger).min(heard + limits.linger_silence)))
            }
        }
    }

    pub fn received(&self) {
        let mut inner = self.inner();
        if matches!(inner.state, State::Idle { .. }) {
            inner.state = State::Head { since: Instant::now() };
            inner.is_request_complete = false;
        }
    }

    /// A head was read; `is_complete` if no body follows.
    pub fn request_began(&self, is_complete: bool) {
        let mut inner = self.inner();
        inner.state = State::Busy;
        inner.is_request_complete = is_complete;
    }

    pub fn request_completed(&self) {
        self.inner().is_request_complete = true;
    }

    pub fn is_request_complete(&self) -> bool {
        self.inner().is_request_complete
    }

    /// The answer is known; `size` unless it is streamed.
    pub fn answer_began(&self, size: Option<u64>, is_last: bool) {
        let mut inner = self.inner();
        inner.state = State::Answering(Answering { since: Instant::now(), size, sent: 0, body: Body::Open });
        inner.is_last_answer = is_last;
    }

    /// No more of the answer's body comes; `is_complete` if all of it came.
    pub fn answer_body_ended(&self, is_complete: bool) {
        if let State::Answering(answering) = &mut self.inner().state {
            answering.body = if is_complete { Body::Complete } else { Body::Broken };
        }
    }

    pub fn sent(&self, bytes: usize) {
        if let State::Answering(answering) = &mut self.inner().state {
            answering.sent += bytes as u64;
        }
    }

    /// All that hyper had to send is sent. True if this was the end of an answer.
    pub fn flushed(&self) -> bool {
        let mut inner = self.inner();
        let is_end = matches!(inner.state, State::Answering(Answering { body: Body::Complete, .. }));
        if is_end {
            inner.state = State::Idle { since: Instant::now() };
        }
        is_end
    }

    /// Whether the end of the answer is marked by nothing but the end of the connection, or may be.
    pub fn is_streaming(&self) -> bool {
        matches!(self.state(), State::Answering(Answering { size: None, .. }))
    }

    pub fn is_answer_under_way(&self) -> bool {
        matches!(self.state(), State::Answering(_))
    }

    /// Whether what the client sends may be discarded while it does not read the answer.
    pub fn may_discard(&self) -> bool {
        let inner = self.inner();
        inner.is_last_answer && !inner.is_request_complete
    }

    /// The answer is out, and what the client still sends is discarded.
    pub fn linger_began(&self) {
        let mut inner = self.inner();
        if !matches!(inner.state, State::Lingering { .. }) {
            let now = Instant::now();
            inner.state = State::Lingering { since: now, heard: now, discarded: 0 };
        }
    }

    /// So many bytes were discarded. The sum since then.
    pub fn discarded(&self, bytes: usize) -> u64 {
        let State::Lingering { heard, discarded, .. } = &mut self.inner().state else { return 0 };
        *heard = Instant::now();
        *discarded += bytes as u64;
        *discarded
    }
}
