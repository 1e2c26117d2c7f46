//! Compresses responses with tower-http: gzip above a minimum size, if the client accepts it.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use crate::api::http::bodies;

/// How the response of a request is compressed.
pub struct Compression {
    threshold_bytes: u64,
    /// What the client accepts.
    encodings: Vec<HeaderValue>,
}

impl Compression {
    pub fn of(request: &Request, threshold_bytes: u64) -> Self {
        let encodings = request.headers().get_all(ACCEPT_ENCODING).iter().cloned().collect();
        Self { threshold_bytes, encodings }
    }

    /// Bodies below the threshold and plain text are not compressed.
    pub async fn apply(self, mut response: Response) -> Response {
        let is_compressible = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|content_type| !content_type.as_bytes().starts_with(b"text/plain"));
        if !is_compressible {
            return response;
        }
        // Another response of the same type may be compressed, so caches must distinguish.
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
        let status = response.status();
        let mut accepts = Request::new(Body::empty());
        for value in self.encodings {
            accepts.headers_mut().append(ACCEPT_ENCODING, value);
        }
        // The layer polls for frames after the last one.
        let mut response = Some(response.map(bodies::fused));
        let service = service_fn(move |_: Request| {
            let response = response.take().unwrap_or_default();
            async move { Ok::<_, Infallible>(response) }
        });
        let layer = CompressionLayer::new().compress_when(SizeAbove::new(self.threshold_bytes));
        let Ok(compressed) = layer.layer(service).oneshot(accepts).await;
        let mut response = compressed.map(Body::new);
        // A client that accepts no encoding at all gets the uncompressed body instead of a 406.
        if response.status() == StatusCode::NOT_ACCEPTABLE {
            *response.status_mut() = status;
        }
        response
    }
}
