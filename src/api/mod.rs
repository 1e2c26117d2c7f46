//! HTTP, the only module that uses axum. Handlers parse and submit writes, and answer reads from
//! [`query`](crate::query).

pub(crate) mod handlers;
pub(crate) mod http;
mod openapi;
pub(crate) mod request;
pub mod route;
pub mod routes;
pub(crate) mod state;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;

use crate::domain::refusal::Refusal;

use http::compression::compress;
use request::answer;
use request::errors::ApiError;
use request::pipeline;
use state::ApiState;

/// All routes with their layers, innermost first. Paths arrive without their trailing slash.
pub fn router(state: ApiState) -> Router {
    let allowed_origins: Arc<[String]> = state.settings.cors_allowed_origins.as_slice().into();
    let threshold_bytes = state.settings.compression_threshold_bytes;
    let mut router = routes::mount()
        .fallback(unmatched)
        .method_not_allowed_fallback(unmatched)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), pipeline::run));
    if let Some(threshold_bytes) = threshold_bytes {
        router = router.layer(from_fn_with_state(threshold_bytes, compress));
    }
    router.layer(from_fn_with_state(allowed_origins, answer::finish)).with_state(state)
}

/// Never runs: the pipeline has already refused such a request.
async fn unmatched() -> ApiError {
    Refusal::Internal.into()
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    error!(panic = text.unwrap_or("unknown"), "a handler panicked");
    ApiError::from(Refusal::Internal).into_response()
}
