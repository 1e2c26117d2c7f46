//! The steps that every request passes before its handler (HTTP contract, section 2.2): identity, access, pause, rate
//! limit, result of the match. The extractors of the handler then read body, query and key.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use percent_encoding::percent_decode_str;
use tracing::error;

use crate::domain::audit_log::Actor;
use crate::domain::caller::Caller;
use crate::domain::refusal::Refusal;
use crate::domain::runtime_config::Limits;
use crate::query::tenants;
use crate::telemetry::RequestSpan;

use crate::api::handlers::console;
use crate::api::http::admission::{Client, TooManyHeld};
use crate::api::http::head;
use crate::api::http::received::Received;
use crate::api::request::answer::RequestRecord;
use crate::api::request::caller::{Identity, authorise, identify};
use crate::api::request::context::RequestContext;
use crate::api::request::errors::{self, ApiError};
use crate::api::request::keyless;
use crate::api::routes;
use crate::api::state::ApiState;

pub async fn run(
    state: &ApiState,
    received: &Arc<Received>,
    client: &Client,
    mut request: Request,
    next: Next,
) -> (Response, RequestRecord) {
    let mut record = RequestRecord::default();
    let response = match head::check(&request) {
        Err(refusal) => ApiError::from(refusal).into_response(),
        Ok(_) if received.method == Method::OPTIONS => options(&request),
        Ok(host) => match pass(state, &mut request, host, received, client, &mut record).await {
            Ok(()) => {
                let response = execute(request, next, received.began + state.settings.request_timeout).await;
                confirm(state, &record, response).await
            }
            Err(error) if matches!(error.refusal, Refusal::NoRoute { .. }) => {
                console::entrance(&request).unwrap_or_else(|| error.into_response())
            }
            Err(error) => error.into_response(),
        },
    };
    let response = errors::render(response, received);
    let response = match hold(response, &record, client) {
        Ok(response) => response,
        Err(refusal) => errors::render(ApiError::from(refusal).into_response(), received),
    };
    (response, record)
}

/// Counts a response as held for its client. Writes, health and metrics are never refused here: a write is already
/// committed, and monitoring must work when the limits are reached.
fn hold(mut response: Response, record: &RequestRecord, client: &Client) -> Result<Response, Refusal> {
    let Some(size) = response.body().size_hint().exact() else { return Ok(response) };
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    let route = record.context.as_ref().map(|context| context.route);
    let is_refusable = route.is_some_and(|route| route.method == "GET" && !route.needs_no_database);
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

/// Refuses what a read has found where the tenant does not live any more, because the directory of this process was old. What
/// is missing there could look as if a request had not been executed.
async fn confirm(state: &ApiState, record: &RequestRecord, response: Response) -> Response {
    let Some(context) = record.context.as_ref().filter(|_| state.has_cells()) else { return response };
    let Identity { cell, tenant, .. } = &context.identity;
    let is_read = context.route.method == "GET" && context.route.uses_tenant();
    if !is_read || response.status().is_server_error() {
        return response;
    }
    match tenants::is_complete(&state.cells[*cell].reader, tenant, context.deadline).await {
        Ok(true) => response,
        Ok(false) => {
            context.note_departure(state);
            ApiError::from(Refusal::TenantElsewhere).into_response()
        }
        Err(refusal) => ApiError::from(refusal).into_response(),
    }
}

/// Runs the handler. Reads end at the deadline here. Writes end by themselves, because only they know whether they
/// committed.
async fn execute(request: Request, next: Next, deadline: Instant) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let run = AssertUnwindSafe(next.run(request)).catch_unwind().map(|ended| ended.unwrap_or_else(panicked));
    if !is_read {
        return run.await;
    }
    // In a separate task, which ends by itself when the client disconnects or the deadline passes. If a read were
    // dropped while it begins a transaction, that transaction would stay open on a connection that returns to the pool.
    match tokio::time::timeout_at(deadline.into(), tokio::spawn(RequestSpan::carry(run))).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) | Err(_) => ApiError::from(Refusal::StoreUnavailable).into_response(),
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    error!(panic = text.unwrap_or("unknown"), "a handler panicked");
    ApiError::from(Refusal::Internal).into_response()
}

/// Steps 3 to 8, and step 10 if no body is read. Attaches the [`RequestContext`] to the request.
async fn pass(
    state: &ApiState,
    request: &mut Request,
    host: Option<Authority>,
    received: &Arc<Received>,
    client: &Client,
    record: &mut RequestRecord,
) -> Result<(), ApiError> {
    let (method, path) = (received.method.as_str(), &received.path);
    // A parameter is never empty, although the router accepts that.
    let is_whole = request.uri().path().split('/').skip(1).all(|segment| !segment.is_empty());
    let matched = request.extensions().get::<MatchedPath>().filter(|_| is_whole);
    let route = matched.and_then(|matched| routes::find(method, matched.as_str()));
    if let Some(route) = route {
        received.span.note_route(route.pattern);
    }
    let deadline = received.began + state.settings.request_timeout;
    let settings = &state.settings;
    let is_foreign = !settings.require_api_key
        && keyless::is_foreign(host.as_ref(), request.uri(), request.headers(), &settings.cors_allowed_origins);
    let identified = identify(state, request.headers(), client.peer, is_foreign, route, deadline);
    let identified = tokio::time::timeout_at(deadline.into(), identified).await;
    let identity = identified.unwrap_or(Err(Refusal::StoreUnavailable))?;
    received.span.note_tenant(&identity.tenant);
    if let Some(route) = route {
        if let Err(refusal) = authorise(route, &identity, settings) {
            // A refused login counts for its address, so that guessing keys is slow.
            limit(state, &Caller::Address(identity.address.clone()), record)?;
            return Err(refusal.into());
        }
        if route.pausable && state.runtime_config.is_paused() {
            return Err(Refusal::Paused.into());
        }
    }
    if route.is_none_or(|route| route.limited) {
        limit_key(state, &identity, record)?;
        limit(state, &identity.caller, record)?;
        if identity.is_unidentified {
            // The address got quota back in the meantime.
            return Err(rate_limited(&state.runtime_config.limits()).into());
        }
    }
    if !has_valid_escapes(path) {
        return Err(Refusal::PathEscape.into());
    }
    let Some(matched) = matched else {
        return Err(Refusal::NoRoute { method: method.to_owned(), path: path.clone() }.into());
    };
    let Some(route) = route else { return Err(ApiError::method_not_allowed(received, allow(matched))) };
    if state.has_cells() && !route.needs_no_database {
        state.cells[identity.cell].availability.check()?;
    }
    let context =
        Arc::new(RequestContext::new(received.clone(), client.clone(), route, identity, request.uri(), deadline));
    record.context = Some(context.clone());
    if route.method == "GET" {
        context.check_query()?;
    }
    request.extensions_mut().insert(context);
    Ok(())
}

/// Step 7: counts the request for `caller`, or refuses it. The response shows the tighter of the limits.
fn limit(state: &ApiState, caller: &Caller, record: &mut RequestRecord) -> Result<(), Refusal> {
    let Some(limiter) = &state.limiter else { return Ok(()) };
    let limits = state.runtime_config.limits();
    let status = limiter.check(caller, state.home().clock.elapsed_ms(), &limits);
    let of_key = record.rate_limit.filter(|of_key| status.allowed && of_key.remaining < status.remaining);
    record.rate_limit = Some(of_key.unwrap_or(status));
    if status.allowed { Ok(()) } else { Err(rate_limited(&limits)) }
}

/// Step 7, for an API key with a limit: counts the request for the key, or refuses it. What the tenant's limit refuses
/// is not counted for the key.
fn limit_key(state: &ApiState, identity: &Identity, record: &mut RequestRecord) -> Result<(), Refusal> {
    let (Some(rate_limit_per_window), Actor::ApiKey(prefix)) = (identity.rate_limit_per_window, identity.actor) else {
        return Ok(());
    };
    let (now_ms, of_tenant) = (state.home().clock.elapsed_ms(), state.runtime_config.limits());
    let limits = Limits { rate_limit_per_window, ..of_tenant };
    if state.limiter.as_ref().is_none_or(|limiter| !limiter.has_quota(&identity.caller, now_ms, &of_tenant)) {
        return Ok(());
    }
    let status = state.key_limiter.check(&prefix, now_ms, &limits);
    record.rate_limit = Some(status);
    if status.allowed { Ok(()) } else { Err(rate_limited(&limits)) }
}

fn rate_limited(limits: &Limits) -> Refusal {
    Refusal::RateLimited { limit: limits.rate_limit_per_window, window_ms: limits.rate_limit_window_ms }
}

/// OPTIONS lists the methods of a known path. The router's own response would not have the right format.
fn options(request: &Request) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(matched) = request.extensions().get::<MatchedPath>() {
        response.headers_mut().insert(header::ALLOW, allow(matched));
    }
    response
}

fn allow(matched: &MatchedPath) -> HeaderValue {
    HeaderValue::from_str(&routes::allow(matched.as_str())).expect("method names")
}

fn has_valid_escapes(path: &str) -> bool {
    if !path.contains('%') {
        return true;
    }
    let bytes = path.as_bytes();
    let whole = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(index, _)| {
        bytes.get(index + 1..index + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    whole && percent_decode_str(path).decode_utf8().is_ok()
}
