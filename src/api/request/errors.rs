//! Refusals as responses. A handler sets status and headers. [`render`], which knows the request, writes the error
//! body.

use std::mem;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::domain::refusal::Refusal;

use crate::api::http::received::Received;
use crate::api::request::response::JSON;

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub refusal: Refusal,
    /// The methods of the path, if another method was used.
    allow: Option<HeaderValue>,
}

impl ApiError {
    pub fn method_not_allowed(received: &Received, allow: HeaderValue) -> Self {
        let (method, path) = (received.method.to_string(), received.path.clone());
        Self { refusal: Refusal::MethodNotAllowed { method, path }, allow: Some(allow) }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, allow: None }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        error.refusal
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.refusal.status_and_code().0).expect("a status");
        let mut response = status.into_response();
        let headers = response.headers_mut();
        if let Some(allow) = &self.allow {
            headers.insert(header::ALLOW, allow.clone());
        }
        if let Some(seconds) = self.refusal.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The body was not read to its end, or the head cannot be trusted, so the connection cannot be reused.
        let ends = [
            Refusal::BodyTimeout,
            Refusal::BodyTooLarge,
            Refusal::Host,
            Refusal::TransferEncoding,
            Refusal::TransferCoding,
        ];
        if ends.contains(&self.refusal) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the body of a refusal.
pub fn render(mut response: Response, received: &Received) -> Response {
    let Some(ApiError { refusal, .. }) = response.extensions().get() else { return response };
    let body = refusal.to_body(received.method.as_str(), &received.path, received.request_id());
    *response.body_mut() = Body::from(body);
    let others = mem::take(response.headers_mut());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.headers_mut().extend(others);
    response
}
