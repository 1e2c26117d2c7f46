//! Compression of responses, by tower-http: gzip from a size on, for what the client accepts.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use crate::api::http::bodies;

/// Compresses `response` for a request with these headers. Bodies below `threshold_bytes` and plain text stay as they are.
pub async fn apply(mut response: Response, request: &HeaderMap, threshold_bytes: u64) -> Response {
    let is_compressible = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|content_type| !content_type.as_bytes().starts_with(b"text/plain"));
    if !is_compressible {
        return response;
    }
    // Whether this body is long enough or not, another one may be.
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let status = response.status();
    let mut question = Request::new(Body::empty());
    for value in request.get_all(ACCEPT_ENCODING) {
        question.headers_mut().append(ACCEPT_ENCODING, value.clone());
    }
    // It asks for frames after the last one.
    let mut answer = Some(response.map(bodies::fused));
    let service = service_fn(move |_: Request| {
        let response = answer.take().unwrap_or_default();
        async move { Ok::<_, Infallible>(response) }
    });
    let layer = CompressionLayer::new().compress_when(SizeAbove::new(threshold_bytes));
    let Ok(compressed) = layer.layer(service).oneshot(question).await;
    let mut response = compressed.map(Body::new);
    // A client that accepts nothing at all gets the plain body, not a 406.
    if response.status() == StatusCode::NOT_ACCEPTABLE {
        *response.status_mut() = status;
    }
    response
}
