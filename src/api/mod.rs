//! HTTP, the only home of axum. Handlers parse and submit writes, and answer reads from the store.

mod activity;
mod admin;
pub mod admission;
mod agents;
mod api_keys;
mod billing;
mod bodies;
mod body;
mod caller;
mod changelog;
mod client_socket;
mod compression;
mod config;
mod connection;
pub mod cors;
mod deep_health;
mod docs;
mod etag;
mod events;
mod exchange;
pub mod exports;
mod fields;
pub mod forwarded;
mod headers;
mod health;
mod http_head;
pub mod http_limits;
mod idempotency;
mod keyless;
mod known_keys;
mod metrics;
mod openapi;
mod pipeline;
mod query;
pub mod rate_limit;
pub mod reads;
mod refused_head;
pub mod routes;
pub mod server;
mod service_usage;
mod services;
mod settle;
mod settlements;
pub mod shared_read;
pub mod starting;
pub mod state;
mod stats;
mod usage;
mod webhooks;

use std::any::Any;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;

use crate::domain::refusal::Refusal;

use exchange::Failure;
use exchange::Peer;
use state::ApiState;

/// All routes behind the pipeline. Paths come without their trailing slash.
pub fn router(state: ApiState) -> Router {
    routes::mount()
        .fallback(unmatched)
        .method_not_allowed_fallback(unmatched)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), pipeline::run))
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
