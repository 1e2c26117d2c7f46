//! The beginning and the end of an exchange. At its end the response gets the headers of every response, is counted, and
//! is written to the log.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use tracing::error;

use crate::domain::identifiers::without_keys;
use crate::domain::refusal::Refusal;
use crate::metrics;
use crate::telemetry::{self, Milliseconds, RequestLine};

use crate::api::http::cors::Origin;
use crate::api::http::headers;
use crate::api::http::rate_limit::RateLimitStatus;
use crate::api::http::received::Received;
use crate::api::request::context::RequestContext;
use crate::api::request::errors::ApiError;

/// What the pipeline records about a request.
#[derive(Debug, Default)]
pub struct RequestRecord {
    /// `None` if the rate limiter neither counted nor refused the request.
    pub rate_limit: Option<RateLimitStatus>,
    /// `None` if the request reached no route.
    pub context: Option<Arc<RequestContext>>,
}

/// A request as its response needs it.
pub struct Exchange {
    pub received: Arc<Received>,
    origin: Origin,
}

impl Exchange {
    pub fn begin(request: &Request, allowed_origins: &[String]) -> Self {
        let origin = Origin::of(request.headers(), allowed_origins);
        Self { received: Arc::new(Received::now(request)), origin }
    }

    pub fn finish(self, mut response: Response, record: &RequestRecord) -> Response {
        let Self { received, origin } = self;
        let took = received.began.elapsed();
        headers::add(response.headers_mut(), &received, took);
        origin.add_headers(response.headers_mut());
        if let Some(status) = &record.rate_limit {
            headers::add_rate_limit(response.headers_mut(), status);
        }
        let refusal = response.extensions().get().map(|ApiError { refusal, .. }| refusal);
        let method = standard(&received.method);
        count(&response, method, refusal, record.context.as_deref(), took);
        log(&response, &received, refusal, took);
        received.span.end_trace(method, response.status().as_u16());
        response
    }
}

/// None for a method that anyone may have made up.
fn standard(method: &Method) -> Option<&'static str> {
    let standard = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    standard.into_iter().find(|standard| *standard == method.as_str())
}

fn count(
    response: &Response,
    method: Option<&str>,
    refusal: Option<&Refusal>,
    context: Option<&RequestContext>,
    took: Duration,
) {
    let accepted = context.filter(|context| context.is_accepted());
    let route = accepted.map_or("unmatched", |context| context.route.pattern);
    metrics::http_request(method.unwrap_or("OTHER"), route, response.status().as_str(), took);
    if let Some(error_type) = refusal.and_then(error_type) {
        metrics::http_error(error_type);
    }
}

/// The label that the metrics use for an error of the body, the path or the server. `None` for other refusals.
fn error_type(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::MalformedJson => Some("entity.parse.failed"),
        Refusal::BodyTooLarge => Some("entity.too.large"),
        Refusal::Decompression => Some("entity.corrupt"),
        Refusal::Encoding => Some("encoding.unsupported"),
        Refusal::Charset => Some("charset.unsupported"),
        Refusal::PathEscape => Some("uri.invalid"),
        Refusal::Internal => Some("internal"),
        Refusal::Starting
        | Refusal::StoreUnavailable
        | Refusal::QueueFull
        | Refusal::OutcomeUnknown
        | Refusal::TooManyBytesHeld => Some("unavailable"),
        _ => None,
    }
}

fn log(response: &Response, received: &Received, refusal: Option<&Refusal>, took: Duration) {
    let (method, request_id) = (received.method.as_str(), received.request_id());
    let status = response.status().as_u16();
    let path = without_keys(&received.path);
    telemetry::request_completed(RequestLine {
        request_id,
        method,
        path: &path,
        status,
        took: Milliseconds::of(took),
        trace_id: received.span.trace_id(),
    });
    if let Some(refusal) = refusal
        && !matches!(refusal, Refusal::Starting | Refusal::TooManyRecords)
        && matches!(refusal.status_and_code().1, "internal_error" | "service_unavailable")
    {
        received.span.in_scope(|| {
            error!(requestId = request_id, method, %path, error = %refusal, "request failed");
        });
    }
}
