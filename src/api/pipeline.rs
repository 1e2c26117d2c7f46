//! What every request passes, in the contract's order: request id, identity, authorisation, outcome of the match, and
//! then its handler. Every response leaves through here with the same headers.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use tracing::{error, info};
use uuid::Uuid;

use crate::command::Reply;
use crate::domain::refusal::Refusal;

use super::caller::{authorise, identify};
use super::exchange::{self, Exchange, Failure, Peer};
use super::query::Query;
use super::state::ApiState;
use super::{headers, routes};

pub async fn run(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let original = request.extensions().get::<OriginalPath>().map(|path| path.0.clone());
    let path = original.unwrap_or_else(|| request.uri().path().to_owned());
    let request_id = request_id(&request);
    let outcome = if method == Method::OPTIONS {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        pass(&state, &mut request, &path, &request_id, began).await
    };
    let response = match outcome {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    };
    let response = match response.extensions().get::<Failure>().is_some() || response.status().is_success() {
        _ if method == Method::OPTIONS => response,
        // The request passed: run it, unless step 8 or an earlier one ended it.
        true if response.extensions().get::<Pass>().is_some() => {
            let is_read = method == Method::GET || method == Method::HEAD;
            let deadline = (began + state.settings.request_timeout).into();
            let run = next.run(request);
            if is_read {
                tokio::time::timeout_at(deadline, run)
                    .await
                    .unwrap_or_else(|_| Failure(Refusal::StoreUnavailable).into_response())
            } else {
                run.await
            }
        }
        _ => response,
    };
    let mut response = render(response, &method, &path, &request_id);
    headers::add(response.headers_mut(), &method, &path, &request_id, began);
    log(&response, &method, &path, &request_id, began);
    response
}

/// The path as sent, before an optional trailing slash was taken off.
#[derive(Clone, Debug)]
pub struct OriginalPath(pub String);

/// Marks that the request passed all steps before its handler.
#[derive(Clone, Copy)]
struct Pass;

/// Steps 3 to 8. Puts the [`Exchange`] into the request.
async fn pass(
    state: &ApiState,
    request: &mut Request,
    path: &str,
    request_id: &str,
    began: Instant,
) -> Result<Response, Failure> {
    let method = request.method().as_str().to_owned();
    let matched = request.extensions().get::<MatchedPath>().map(|matched| matched.as_str().to_owned());
    let route = matched.as_deref().and_then(|matched| routes::find(&method, matched));
    let peer = request.extensions().get::<Peer>().copied().ok_or(Failure(Refusal::Internal))?;
    let identity = identify(state, request.headers(), peer.0, route).await?;
    if let Some(route) = route {
        authorise(route, &identity, state.settings.require_api_key)?;
    }
    if !has_valid_escapes(path) {
        return Err(Failure(Refusal::PathEscape));
    }
    let Some(matched) = matched else {
        return Err(Failure(Refusal::NoRoute { method, path: path.to_owned() }));
    };
    let Some(route) = route else {
        let mut response = Failure(Refusal::MethodNotAllowed { method, path: path.to_owned() }).into_response();
        let allow = HeaderValue::from_str(&routes::allow(&matched)).expect("method names");
        response.headers_mut().insert(header::ALLOW, allow);
        return Ok(response);
    };
    let exchange = Exchange {
        request_id: request_id.to_owned(),
        path: path.to_owned(),
        route,
        parameters: exchange::parameters(route.pattern, request.uri().path()),
        identity,
        query: Query::parse(request.uri().query().unwrap_or_default()),
        deadline: began + state.settings.request_timeout,
    };
    if route.method == "GET" && !route.strict_query {
        exchange::check_query(&exchange, &[])?;
    }
    request.extensions_mut().insert(Arc::new(exchange));
    let mut response = StatusCode::OK.into_response();
    response.extensions_mut().insert(Pass);
    Ok(response)
}

/// Writes the envelope of a refusal.
fn render(response: Response, method: &Method, path: &str, request_id: &str) -> Response {
    let Some(Failure(refusal)) = response.extensions().get::<Failure>().cloned() else { return response };
    let mut rendered = exchange::respond(Reply::refusal(&refusal, method.as_str(), path, request_id));
    for (name, value) in response.headers() {
        if name == header::ALLOW {
            rendered.headers_mut().insert(name, value.clone());
        }
    }
    if refusal.is_worth_retrying() {
        rendered.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal == Refusal::BodyTimeout {
        rendered.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    rendered.extensions_mut().insert(Failure(refusal));
    rendered
}

fn request_id(request: &Request) -> String {
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

fn log(response: &Response, method: &Method, path: &str, request_id: &str, began: Instant) {
    let status = response.status().as_u16();
    let tenths = (began.elapsed().as_secs_f64() * 10_000.0).round();
    info!(requestId = request_id, %method, path, status, durationMs = tenths / 10.0, "request completed");
    if let Some(Failure(refusal)) = response.extensions().get::<Failure>()
        && matches!(refusal.status_and_code().1, "internal_error" | "service_unavailable")
    {
        error!(requestId = request_id, %method, path, error = %refusal, "request failed");
    }
}
