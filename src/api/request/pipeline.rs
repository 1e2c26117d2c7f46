//! The steps of every request, in order (HTTP contract, section 2.2): request id, CORS, identity, authorisation, pause,
//! rate limit, outcome of the match, and then its handler, which reads body, query and key. Every response leaves here.

use std::sync::Arc;
use std::time::Instant;

use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use tracing::error;
use uuid::Uuid;

use crate::command::Reply;
use crate::domain::caller::Caller;
use crate::domain::identifiers::without_keys;
use crate::domain::limits::Limits;
use crate::domain::refusal::Refusal;
use crate::metrics;
use crate::telemetry::{self, RequestLine};

use crate::api::http::admission::{Client, TooManyHeld};
use crate::api::http::compression;
use crate::api::http::cors::Origin;
use crate::api::http::head;
use crate::api::http::headers;
use crate::api::http::rate_limit::Standing;
use crate::api::request::caller::{authorise, identify};
use crate::api::request::exchange::{self, Exchange, Failure, Peer};
use crate::api::routes;
use crate::api::state::ApiState;

pub async fn run(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = path_of(&request);
    let request_id = request_id(&request);
    let origin = Origin::of(request.headers(), &state.settings.cors_allowed_origins);
    let accepts = state.settings.compression_threshold_bytes.map(|threshold| (request.headers().clone(), threshold));
    let client = request.extensions().get::<Client>().cloned();
    let mut trail = Trail::default();
    let response = if let Err(refusal) = head::check(&request) {
        ended(refusal)
    } else if method == Method::OPTIONS {
        options(&request)
    } else {
        match pass(&state, &mut request, &path, &request_id, began, &mut trail).await {
            Ok(()) => execute(request, next, began + state.settings.request_timeout).await,
            Err(ended) => ended,
        }
    };
    let response = render(response, &method, &path, &request_id);
    let mut response = match hold(response, &trail, client.as_ref()) {
        Ok(response) => response,
        Err(refusal) => render(ended(refusal), &method, &path, &request_id),
    };
    if let Some((accepts, threshold)) = accepts {
        // Boxed, so that a service without compression does not carry its size in every request.
        response = Box::pin(compression::apply(response, &accepts, threshold)).await;
    }
    headers::add(response.headers_mut(), &method, &path, &request_id, began);
    origin.add_headers(response.headers_mut());
    if let Some(standing) = trail.standing {
        headers::add_standing(response.headers_mut(), &standing);
    }
    record(&response, &method, trail.exchange.as_deref(), began);
    log(&response, &method, &path, &request_id, began);
    response
}

/// What a request leaves behind on its way, for its response and the metrics.
#[derive(Default)]
struct Trail {
    /// If the rate limiter counted or refused it.
    standing: Option<Standing>,
    /// If it reached its route.
    exchange: Option<Arc<Exchange>>,
}

/// The path as sent, before an optional trailing slash was taken off.
#[derive(Clone, Debug)]
pub struct OriginalPath(pub String);

/// The path as sent.
pub(super) fn path_of(request: &Request) -> String {
    let original = request.extensions().get::<OriginalPath>().map(|path| path.0.clone());
    original.unwrap_or_else(|| request.uri().path().to_owned())
}

/// Counts an answer as held for its client. What a write answers is done, and what watches the service has to see it when
/// it is at its limits: those are never refused.
fn hold(mut response: Response, trail: &Trail, client: Option<&Client>) -> Result<Response, Refusal> {
    let (Some(client), Some(size)) = (client, response.body().size_hint().exact()) else { return Ok(response) };
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    let route = trail.exchange.as_ref().map(|exchange| exchange.route);
    let is_refusable = route.is_some_and(|route| route.method == "GET" && !route.works_alone);
    let held = match client.hold(bytes) {
        Ok(held) => held,
        Err(TooManyHeld) if is_refusable => return Err(Refusal::TooManyBytesHeld),
        Err(TooManyHeld) => Some(client.hold_always(bytes)),
    };
    if let Some(held) = held {
        response.extensions_mut().insert(Arc::new(held));
    }
    Ok(response)
}

/// Runs the handler. Reads are bounded here; writes bound themselves, because only they know what is certain.
async fn execute(request: Request, next: Next, deadline: Instant) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let run = next.run(request);
    if !is_read {
        return run.await;
    }
    // In a task of its own, which ends by itself when the client or the deadline has ended this one: a read that is cut
    // off while it begins a transaction would leave that open on a connection which others use next.
    match tokio::time::timeout_at(deadline.into(), tokio::spawn(run)).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) | Err(_) => Failure(Refusal::StoreUnavailable).into_response(),
    }
}

/// Steps 3 to 8, and 10 where no body is read. Puts the [`Exchange`] into the request, or gives the response that ends it.
async fn pass(
    state: &ApiState,
    request: &mut Request,
    path: &str,
    request_id: &str,
    began: Instant,
    trail: &mut Trail,
) -> Result<(), Response> {
    let method = request.method().as_str();
    // A parameter is never empty, whatever the router thinks.
    let is_whole = request.uri().path().split('/').skip(1).all(|segment| !segment.is_empty());
    let matched = request.extensions().get::<MatchedPath>().filter(|_| is_whole);
    let route = matched.and_then(|matched| routes::find(method, matched.as_str()));
    let peer = request.extensions().get::<Peer>().copied().ok_or_else(|| ended(Refusal::Internal))?;
    let deadline = began + state.settings.request_timeout;
    let identified = identify(state, (request.uri(), request.headers()), peer.0.ip(), route, deadline);
    let identified = tokio::time::timeout_at(deadline.into(), identified).await;
    let identity = identified.unwrap_or(Err(Refusal::StoreUnavailable)).map_err(ended)?;
    if let Some(route) = route {
        if let Err(refusal) = authorise(route, &identity, &state.settings) {
            // A failed login counts on the address it came from, so that guessing keys is slow.
            limit(state, &Caller::Address(identity.address.clone()), trail).map_err(ended)?;
            return Err(ended(refusal));
        }
        if route.pausable && state.limits.is_paused() {
            return Err(ended(Refusal::Paused));
        }
    }
    if route.is_none_or(|route| route.limited) {
        limit(state, &identity.caller, trail).map_err(ended)?;
        if identity.is_unidentified {
            // Quota came back this very moment.
            return Err(ended(rate_limited(&state.limits.now())));
        }
    }
    if !has_valid_escapes(path) {
        return Err(ended(Refusal::PathEscape));
    }
    let Some(matched) = matched else {
        return Err(ended(Refusal::NoRoute { method: method.to_owned(), path: path.to_owned() }));
    };
    let Some(route) = route else {
        let mut response = ended(Refusal::MethodNotAllowed { method: method.to_owned(), path: path.to_owned() });
        response.headers_mut().insert(header::ALLOW, allow(matched.as_str()));
        return Err(response);
    };
    let exchange = Arc::new(Exchange::new((request_id, path), route, identity, request.uri(), deadline));
    trail.exchange = Some(exchange.clone());
    if route.method == "GET" && !route.strict_query {
        exchange::check_query(&exchange, &[]).map_err(ended)?;
    }
    request.extensions_mut().insert(exchange);
    Ok(())
}

/// Step 7: counts the request on `caller`, or ends it.
fn limit(state: &ApiState, caller: &Caller, trail: &mut Trail) -> Result<(), Refusal> {
    let Some(limiter) = &state.limiter else { return Ok(()) };
    let limits = state.limits.now();
    let standing = limiter.hit(caller, state.clock.elapsed_ms(), &limits);
    trail.standing = Some(standing);
    if standing.allowed {
        return Ok(());
    }
    Err(rate_limited(&limits))
}

fn rate_limited(limits: &Limits) -> Refusal {
    Refusal::RateLimited { limit: limits.rate_limit_per_window, window_ms: limits.rate_limit_window_ms }
}

/// OPTIONS tells the methods of a known path; the router would, in words of its own.
fn options(request: &Request) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(matched) = request.extensions().get::<MatchedPath>() {
        response.headers_mut().insert(header::ALLOW, allow(matched.as_str()));
    }
    response
}

fn allow(matched: &str) -> HeaderValue {
    HeaderValue::from_str(&routes::allow(matched)).expect("method names")
}

fn ended(refusal: Refusal) -> Response {
    Failure(refusal).into_response()
}

/// Writes the envelope of a refusal.
pub(super) fn render(response: Response, method: &Method, path: &str, request_id: &str) -> Response {
    let Some(Failure(refusal)) = response.extensions().get::<Failure>().cloned() else { return response };
    let mut rendered = exchange::respond(Reply::refusal(&refusal, method.as_str(), path, request_id));
    for (name, value) in response.headers() {
        if name == header::ALLOW {
            rendered.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(seconds) = refusal.retry_after() {
        rendered.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    // No body was read to its end, or no head can be trusted: the connection is of no further use.
    let ends = [
        Refusal::BodyTimeout,
        Refusal::BodyTooLarge,
        Refusal::Host,
        Refusal::TransferEncoding,
        Refusal::TransferCoding,
    ];
    if ends.contains(&refusal) {
        rendered.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    rendered.extensions_mut().insert(Failure(refusal));
    rendered
}

pub(super) fn request_id(request: &Request) -> String {
    request
        .headers()
        .get("x-request-id")
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        .filter(|id| (1..=200).contains(&id.len()) && id.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

fn has_valid_escapes(path: &str) -> bool {
    let bytes = path.as_bytes();
    let whole = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(place, _)| {
        bytes.get(place + 1..place + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    whole && percent_decode_str(path).decode_utf8().is_ok()
}

/// Counts the answered request.
pub(super) fn record(response: &Response, method: &Method, exchange: Option<&Exchange>, began: Instant) {
    let standard = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
        Method::TRACE,
    ];
    let method = if standard.contains(method) { method.as_str() } else { "OTHER" };
    let reached = exchange.filter(|exchange| exchange.is_in_order());
    let route = reached.map_or("unmatched", |exchange| exchange.route.pattern);
    metrics::http_request(method, route, response.status().as_str(), began.elapsed());
    if let Some(Failure(refusal)) = response.extensions().get::<Failure>()
        && let Some(error_type) = error_type(refusal)
    {
        metrics::http_error(error_type);
    }
}

/// What the metrics call a fault of body, path or server; none for other refusals.
fn error_type(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::MalformedJson => Some("entity.parse.failed"),
        Refusal::BodyTooLarge => Some("entity.too.large"),
        Refusal::Decompression => Some("entity.corrupt"),
        Refusal::Encoding => Some("encoding.unsupported"),
        Refusal::Charset => Some("charset.unsupported"),
        Refusal::PathEscape => Some("uri.invalid"),
        Refusal::Internal => Some("internal"),
        Refusal::Starting
        | Refusal::StoreUnavailable
        | Refusal::QueueFull
        | Refusal::OutcomeUnknown
        | Refusal::TooManyBytesHeld => Some("unavailable"),
        _ => None,
    }
}

pub(super) fn log(response: &Response, method: &Method, path: &str, request_id: &str, began: Instant) {
    let status = response.status().as_u16();
    let path = without_keys(path);
    let duration_tenths = u64::try_from((began.elapsed().as_micros() + 50) / 100).unwrap_or(u64::MAX);
    telemetry::request_completed(RequestLine {
        request_id,
        method: method.as_str(),
        path: &path,
        status,
        duration_tenths,
    });
    if let Some(Failure(refusal)) = response.extensions().get::<Failure>()
        && !matches!(refusal, Refusal::Starting | Refusal::TooManyRecords)
        && matches!(refusal.status_and_code().1, "internal_error" | "service_unavailable")
    {
        error!(requestId = request_id, %method, path, error = %refusal, "request failed");
    }
}
