//! The service during startup: liveness succeeds, readiness names the current step, and other requests are refused.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::command::Reply;
use crate::domain::refusal::Refusal;
use crate::progress::Progress;

use crate::api::handlers::health;
use crate::api::http::head;
use crate::api::request::answer::{Exchange, RequestRecord};
use crate::api::request::errors::{self, ApiError};
use crate::api::request::response::respond;

/// The router that answers until the service has started.
pub fn router(progress: Progress, cors_allowed_origins: &[String]) -> Router {
    Router::new().fallback(answer).with_state((progress, cors_allowed_origins.into()))
}

#[derive(Serialize)]
struct NotReady {
    ready: bool,
    reason: String,
}

async fn answer(State((progress, allowed_origins)): State<(Progress, Arc<[String]>)>, request: Request) -> Response {
    let exchange = Exchange::begin(&request, &allowed_origins);
    let response = errors::render(try_answer(&progress, &request).into_response(), &exchange.received);
    exchange.finish(response, &RequestRecord::default())
}

fn try_answer(progress: &Progress, request: &Request) -> Result<Response, ApiError> {
    head::check(request)?;
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/health" if is_read => Ok(health::alive_response()),
        "/api/v1/health/ready" if is_read => {
            let reason = format!("starting: waiting for {}", progress.waits_for());
            Ok(respond(Reply::json(503, &NotReady { ready: false, reason })))
        }
        _ => Err(Refusal::Starting.into()),
    }
}
