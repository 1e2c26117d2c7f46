//! The state of a connection, shared by its socket, its bodies and its service, and the time at which that state must
//! end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::settings::http_limits::HttpLimits;

/// When a drain begins, an incomplete head or a body that is being discarded has this much time left: enough for data
/// already on its way, too little to delay the drain.
const REST_WHILE_DRAINING: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No byte of the next request has arrived.
    Idle { since: Instant },
    /// A part of a head has arrived.
    Head { since: Instant },
    /// A request is being handled. The request has its own deadline.
    Busy,
    /// The response is being sent.
    Answering(Answering),
    /// The response is sent. What the client still sends is discarded.
    Lingering { since: Instant, heard: Instant, discarded: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answering {
    since: Instant,
    /// `None` if the response is streamed.
    size: Option<u64>,
    sent: u64,
    body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Open,
    /// All of it was given to hyper.
    Complete,
    Broken,
}

/// Shared by the parts of one connection.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    state: State,
    /// Whether all of the request has arrived.
    is_request_complete: bool,
    /// The connection closes after this response, so later bytes are not a request.
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

    /// When the current state must end. `None` while a request is being handled.
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

    /// A head was read. `is_complete` if it has no body.
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

    /// The response is known. `size` is `None` if it is streamed.
    pub fn answer_began(&self, size: Option<u64>, is_last: bool) {
        let mut inner = self.inner();
        inner.state = State::Answering(Answering { since: Instant::now(), size, sent: 0, body: Body::Open });
        inner.is_last_answer = is_last;
    }

    /// The response body has ended. `is_complete` if no part of it is missing.
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

    /// hyper has written everything it had. Returns true if that was the end of a response.
    pub fn flushed(&self) -> bool {
        let mut inner = self.inner();
        let is_end = matches!(inner.state, State::Answering(Answering { body: Body::Complete, .. }));
        if is_end {
            inner.state = State::Idle { since: Instant::now() };
        }
        is_end
    }

    /// Whether only the end of the connection may mark the end of the response.
    pub fn is_streaming(&self) -> bool {
        matches!(self.state(), State::Answering(Answering { size: None, .. }))
    }

    pub fn is_answer_under_way(&self) -> bool {
        matches!(self.state(), State::Answering(_))
    }

    /// Whether to discard what the client sends while it does not read the response.
    pub fn may_discard(&self) -> bool {
        let inner = self.inner();
        inner.is_last_answer && !inner.is_request_complete
    }

    /// The response is sent. From now on, what the client sends is discarded.
    pub fn linger_began(&self) {
        let mut inner = self.inner();
        if !matches!(inner.state, State::Lingering { .. }) {
            let now = Instant::now();
            inner.state = State::Lingering { since: now, heard: now, discarded: 0 };
        }
    }

    /// Adds to the number of discarded bytes, and returns the sum.
    pub fn discarded(&self, bytes: usize) -> u64 {
        let State::Lingering { heard, discarded, .. } = &mut self.inner().state else { return 0 };
        *heard = Instant::now();
        *discarded += bytes as u64;
        *discarded
    }
}
