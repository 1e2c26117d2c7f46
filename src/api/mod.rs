//! HTTP, the only module that uses axum. Handlers parse and submit writes, and answer reads from
//! [`query`](crate::query).

pub(crate) mod handlers;
pub(crate) mod http;
mod openapi;
pub mod request;
pub mod route;
pub mod routes;
pub(crate) mod state;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Router};

use crate::domain::refusal::Refusal;

use http::admission::Client;
use http::compression::Compression;
use request::answer::Exchange;
use request::errors::ApiError;
use request::pipeline;
use state::ApiState;

/// All routes. Paths arrive without their trailing slash.
pub fn router(state: ApiState) -> Router {
    routes::mount()
        .fallback(unmatched)
        .method_not_allowed_fallback(unmatched)
        .layer(from_fn_with_state(state.clone(), serve))
        .with_state(state)
}

/// Serves a request, before and after its route. This is one layer, because axum clones and boxes all inner services for
/// each layer and request.
async fn serve(
    State(state): State<ApiState>,
    Extension(client): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    let exchange = Exchange::begin(&request, &state.settings.cors_allowed_origins);
    let compression = state.settings.compression_threshold_bytes.map(|bytes| Compression::of(&request, bytes));
    let received = &exchange.received;
    let (mut response, record) = received.span.scope(pipeline::run(&state, received, &client, request, next)).await;
    if let Some(compression) = compression {
        response = Box::pin(compression.apply(response)).await;
    }
    exchange.finish(response, &record)
}

/// Never runs: the pipeline has already refused such a request.
async fn unmatched() -> ApiError {
    Refusal::Internal.into()
}
