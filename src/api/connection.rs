//! One connection of a client, and how long it may be silent: KEEPALIVE_TIMEOUT_MS between two requests,
//! HEADERS_TIMEOUT_MS for a head once its first byte has come. A request under way has a deadline of its own.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::Peer;
use super::server::prepare;
use super::starting::CurrentRouter;

/// What is left of a half-sent head when a drain begins: enough for one on its way, too little to hold the drain up.
const HEAD_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// How long the last answer of a connection may take on its way out.
const LAST_ANSWER: Duration = Duration::from_secs(60);

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    pub headers: Duration,
    pub keepalive: Duration,
}

/// Serves one connection until either side ends it. At `stop` it ends as soon as no request is under way.
pub async fn serve(stream: TcpStream, peer: Peer, router: CurrentRouter, silence: Silence, stop: CancellationToken) {
    let activity = Activity::new();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        activity.set(State::Busy);
        let (answer, activity) = (router.get().oneshot(prepare(request, peer)), activity.clone());
        async move {
            let answer: Result<Response, _> = answer.await;
            activity.set(State::Idle { since: Instant::now() });
            answer
        }
    });
    let stream = TokioIo::new(Watched { stream, activity: activity.clone() });
    let mut http = http1::Builder::new();
    // Its own timer would count the time between two requests into the head.
    http.timer(TokioTimer::new()).header_read_timeout(None);
    let mut connection = pin!(http.serve_connection(stream, service));
    let mut stopped = pin!(stop.cancelled());
    let mut timer = pin!(sleep_until(Instant::now() + silence.keepalive));
    let mut drains_since = None;
    let mut closes_at: Option<Instant> = None;
    poll_fn(|context| {
        loop {
            // An error means that the client broke the connection; nobody is left to be told.
            if connection.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            if drains_since.is_none() && stopped.as_mut().poll(context).is_ready() {
                drains_since = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let Some(due) = closes_at.or_else(|| activity.due(silence, drains_since)) else { return Poll::Pending };
            if timer.is_elapsed() || timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if due > Instant::now() {
                continue;
            }
            if closes_at.is_some() || !activity.is_idle() {
                return Poll::Ready(());
            }
            // The last answer may still be on its way out; then the connection ends behind it, if it is read at all.
            closes_at = Some(Instant::now() + LAST_ANSWER);
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// A head has begun.
    Head {
        since: Instant,
    },
    Busy,
    /// The last request, if there was one, is answered, and no byte of the next has come.
    Idle {
        since: Instant,
    },
}

/// What a connection is doing, as its socket and its service see it.
#[derive(Clone, Debug)]
struct Activity(Arc<Mutex<State>>);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State::Idle { since: Instant::now() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
    }

    fn is_idle(&self) -> bool {
        matches!(*self.state(), State::Idle { .. })
    }

    /// When the silence has lasted too long. None while a request is under way.
    fn due(&self, silence: Silence, drains_since: Option<Instant>) -> Option<Instant> {
        match (*self.state(), drains_since) {
            (State::Busy, _) => None,
            (State::Head { since }, Some(drain)) => Some((since + silence.headers).min(drain + HEAD_WHILE_DRAINING)),
            (State::Head { since }, None) => Some(since + silence.headers),
            (State::Idle { since }, _) => Some(since + silence.keepalive),
        }
    }

    fn received(&self) {
        let mut state = self.state();
        if matches!(*state, State::Idle { .. }) {
            *state = State::Head { since: Instant::now() };
        }
    }

    /// A long answer that still flows is no silence.
    fn sent(&self) {
        if let State::Idle { since } = &mut *self.state() {
            *since = Instant::now();
        }
    }
}

/// A socket that tells when bytes pass.
struct Watched {
    stream: TcpStream,
    activity: Activity,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if polled.is_ready() {
            self.activity.sent();
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if polled.is_ready() {
            self.activity.sent();
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
