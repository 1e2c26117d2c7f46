//! The service during startup: liveness succeeds, readiness names the current step, and other requests are refused.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use serde::Serialize;

use crate::command::Reply;
use crate::domain::refusal::Refusal;
use crate::progress::Progress;

use crate::api::handlers::health;
use crate::api::http::head;
use crate::api::http::received::Received;
use crate::api::request::answer;
use crate::api::request::errors::{self, ApiError};
use crate::api::request::response::respond;

/// The router that answers until the service has started.
pub fn router(progress: Progress, cors_allowed_origins: &[String]) -> Router {
    let allowed_origins: Arc<[String]> = cors_allowed_origins.into();
    Router::new().fallback(answer).layer(from_fn_with_state(allowed_origins, answer::finish)).with_state(progress)
}

#[derive(Serialize)]
struct NotReady {
    ready: bool,
    reason: String,
}

async fn answer(
    State(progress): State<Progress>,
    Extension(received): Extension<Arc<Received>>,
    request: Request,
) -> Response {
    errors::render(try_answer(&progress, &request).into_response(), &received)
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
