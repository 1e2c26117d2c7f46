//! The service before it is ready: it lives, it says what it waits for, and it refuses everything else.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::command::Reply;
use crate::domain::refusal::Refusal;
use crate::progress::Progress;

use super::pipeline;
use crate::api::handlers::health;
use crate::api::http::cors::Origin;
use crate::api::http::head;
use crate::api::http::headers;
use crate::api::request::exchange::{self, Failure};

/// The router that connections use: first one of [`router`], and then that of the started service.
#[derive(Clone)]
pub struct CurrentRouter(Arc<ArcSwap<Router>>);

impl CurrentRouter {
    pub fn new(router: Router) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(router)))
    }

    /// For one request.
    pub fn get(&self) -> Router {
        Router::clone(&self.0.load())
    }

    /// For all requests that come from now on.
    pub fn replace(&self, router: Router) {
        self.0.store(Arc::new(router));
    }
}

#[derive(Clone)]
struct StartingState {
    progress: Progress,
    cors_allowed_origins: Arc<[String]>,
}

/// Answers until the service has started.
pub fn router(progress: Progress, cors_allowed_origins: &[String]) -> Router {
    let state = StartingState { progress, cors_allowed_origins: cors_allowed_origins.into() };
    Router::new().fallback(answer).with_state(state)
}

#[derive(Serialize)]
struct NotReady {
    ready: bool,
    reason: String,
}

async fn answer(State(state): State<StartingState>, request: Request) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = pipeline::path_of(&request);
    let request_id = pipeline::request_id(&request);
    let origin = Origin::of(request.headers(), &state.cors_allowed_origins);
    let is_read = matches!(method, Method::GET | Method::HEAD);
    let response = match request.uri().path() {
        "/health" if is_read => health::alive_response(),
        "/api/v1/health/ready" if is_read => {
            let reason = format!("starting: waiting for {}", state.progress.waits_for());
            exchange::respond(Reply::json(503, &NotReady { ready: false, reason }))
        }
        _ => Failure(Refusal::Starting).into_response(),
    };
    let response = match head::check(&request) {
        Ok(()) => response,
        Err(refusal) => Failure(refusal).into_response(),
    };
    let mut response = pipeline::render(response, &method, &path, &request_id);
    headers::add(response.headers_mut(), &method, &path, &request_id, began);
    origin.add_headers(response.headers_mut());
    pipeline::record(&response, &method, None, began);
    pipeline::log(&response, &method, &path, &request_id, began);
    response
}
