//! HTTP, the only home of axum. Handlers parse and submit writes, and answer reads from the store.

pub mod handlers;
pub mod http;
mod openapi;
pub mod request;
pub mod routes;
pub mod state;

use std::any::Any;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;

use crate::domain::refusal::Refusal;

use request::exchange::Failure;
use request::exchange::Peer;
use state::ApiState;

/// All routes behind the pipeline. Paths come without their trailing slash.
pub fn router(state: ApiState) -> Router {
    routes::mount()
        .fallback(unmatched)
        .method_not_allowed_fallback(unmatched)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), request::pipeline::run))
        .with_state(state)
}

/// The pipeline has ended such a request before.
async fn unmatched() -> Failure {
    Failure(Refusal::Internal)
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    error!(panic = text.unwrap_or("unknown"), "a handler panicked");
    Failure(Refusal::Internal).into_response()
}
