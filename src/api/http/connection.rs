//! One client connection from its first byte to its last. [`Activity`] says when its current state must end.
//!
//! `GracefulShutdown` of hyper-util takes the connection over. It is polled here instead, because the service must also
//! end connections that are idle or whose head is incomplete, and then write a response to the socket.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::domain::refusal::Refusal;

use crate::api::http::activity::{Activity, State};
use crate::api::http::admission::{Client, ConnectionPermit};
use crate::api::http::bodies::{AnswerBody, RequestBody};
use crate::api::http::client_socket::ClientSocket;
use crate::api::http::current_router::CurrentRouter;
use crate::api::http::received::take_off_slash;
use crate::settings::http_limits::HttpLimits;

/// Time that hyper has to close a connection that is idle.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A body up to this length that was not read has mostly arrived together with its head. hyper discards it, and the
/// connection stays open.
const UNREAD_BYTES_MAX: u64 = 16 << 10;

/// Serves one connection until either side ends it. After `stop` it ends when no request is being handled.
pub async fn serve(
    stream: TcpStream,
    permit: ConnectionPermit,
    router: CurrentRouter,
    limits: HttpLimits,
    stop: CancellationToken,
) {
    let activity = Activity::new();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        exchange(request, router.get(), permit.client(), activity.clone())
    });
    let socket = TokioIo::new(ClientSocket::new(stream, activity.clone(), limits));
    let mut http = http1::Builder::new();
    // hyper's timer would include the time between two requests. hyper reads at most 100 headers.
    http.timer(TokioTimer::new()).header_read_timeout(None);
    http.max_header_size(limits.head_bytes_max).max_buf_size(limits.head_bytes_max);
    let mut connection = http.serve_connection(socket, service);
    let mut stopped = pin!(stop.cancelled());
    let mut timer = pin!(sleep_until(Instant::now() + limits.keepalive_timeout));
    let mut drains_since = None;
    let mut closes_at: Option<Instant> = None;
    let refusal = poll_fn(|context| {
        loop {
            // An error means that the client broke the connection or that a response broke off. The socket handles
            // both.
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(context) {
                let is_http_2 = ended.is_err_and(|error| error.is_parse_version_h2());
                return Poll::Ready(is_http_2.then_some(Refusal::MalformedHead));
            }
            if drains_since.is_none() && stopped.as_mut().poll(context).is_ready() {
                drains_since = Some(Instant::now());
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            }
            let Some(due) = closes_at.or_else(|| activity.due(&limits, drains_since)) else { return Poll::Pending };
            if timer.is_elapsed() || timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if due > Instant::now() {
                continue;
            }
            let state = activity.state();
            if closes_at.is_some() || !matches!(state, State::Idle { .. }) {
                let is_late = matches!(state, State::Head { .. }) && drains_since.is_none();
                return Poll::Ready(is_late.then_some(Refusal::HeadTimeout));
            }
            closes_at = Some(Instant::now() + CLOSE_LIMIT);
            Pin::new(&mut connection).graceful_shutdown();
        }
    })
    .await;
    // hyper does not respond to an incomplete head, nor to HTTP/2.
    if let Some(refusal) = refusal {
        let mut socket = connection.into_parts().io.into_inner();
        let _ = timeout(CLOSE_LIMIT, socket.refuse(refusal)).await;
    }
}

/// Handles one request.
async fn exchange(
    request: hyper::Request<Incoming>,
    router: Router,
    client: Client,
    activity: Activity,
) -> Result<Response<AnswerBody>, std::convert::Infallible> {
    activity.request_began(request.body().is_end_stream());
    let is_head = request.method() == Method::HEAD;
    let takes_rest = is_short(&request);
    let request = request.map(|body| RequestBody::of(body, &activity));
    let mut response: Response = router.oneshot(prepare(request, client)).await?;
    if !activity.is_request_complete() && !takes_rest {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let is_last = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
    let is_left_out = is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let size = if is_left_out { Some(0) } else { response.body().size_hint().exact() };
    activity.answer_began(size, is_last);
    Ok(AnswerBody::of(response, is_left_out, activity))
}

fn prepare(mut request: Request, client: Client) -> Request {
    take_off_slash(&mut request);
    request.extensions_mut().insert(client);
    request
}

/// Whether the unread body of a request can be discarded so that the connection stays open.
fn is_short(request: &hyper::Request<Incoming>) -> bool {
    let length = request.body().size_hint().exact();
    length.is_some_and(|length| length <= UNREAD_BYTES_MAX) && !request.headers().contains_key(EXPECT)
}
