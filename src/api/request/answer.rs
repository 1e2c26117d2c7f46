//! The outermost layer. It adds the headers of every response, counts the response, and writes it to the log.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tracing::error;

use crate::domain::identifiers::without_keys;
use crate::domain::refusal::Refusal;
use crate::metrics;
use crate::telemetry::{self, RequestLine};

use crate::api::http::cors::Origin;
use crate::api::http::headers;
use crate::api::http::rate_limit::RateLimitStatus;
use crate::api::http::received::Received;
use crate::api::request::context::RequestContext;
use crate::api::request::errors::ApiError;

/// What the pipeline records about a request, in the extensions of its response.
#[derive(Clone, Debug, Default)]
pub struct RequestRecord {
    /// `None` if the rate limiter neither counted nor refused the request.
    pub rate_limit: Option<RateLimitStatus>,
    /// `None` if the request reached no route.
    pub context: Option<Arc<RequestContext>>,
}

pub async fn finish(State(allowed_origins): State<Arc<[String]>>, mut request: Request, next: Next) -> Response {
    let received = Arc::new(Received::now(&request));
    let origin = Origin::of(request.headers(), &allowed_origins);
    request.extensions_mut().insert(received.clone());
    let mut response = received.span.scope(next.run(request)).await;
    let record: RequestRecord = response.extensions_mut().remove().unwrap_or_default();
    headers::add(response.headers_mut(), &received);
    origin.add_headers(response.headers_mut());
    if let Some(status) = record.rate_limit {
        headers::add_rate_limit(response.headers_mut(), &status);
    }
    let refusal = response.extensions().get().map(|ApiError { refusal, .. }| refusal);
    count(&response, &received, refusal, record.context.as_deref());
    log(&response, &received, refusal);
    response
}

fn count(response: &Response, received: &Received, refusal: Option<&Refusal>, context: Option<&RequestContext>) {
    let standard = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
        Method::TRACE,
    ];
    let method = if standard.contains(&received.method) { received.method.as_str() } else { "OTHER" };
    let accepted = context.filter(|context| context.is_accepted());
    let route = accepted.map_or("unmatched", |context| context.route.pattern);
    metrics::http_request(method, route, response.status().as_str(), received.began.elapsed());
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

fn log(response: &Response, received: &Received, refusal: Option<&Refusal>) {
    let Received { method, began, .. } = received;
    let request_id = received.request_id();
    let status = response.status().as_u16();
    let path = without_keys(&received.path);
    let duration_tenths = u64::try_from((began.elapsed().as_micros() + 50) / 100).unwrap_or(u64::MAX);
    telemetry::request_completed(RequestLine {
        request_id,
        method: method.as_str(),
        path: &path,
        status,
        duration_tenths,
    });
    if let Some(refusal) = refusal
        && !matches!(refusal, Refusal::Starting | Refusal::TooManyRecords)
        && matches!(refusal.status_and_code().1, "internal_error" | "service_unavailable")
    {
        received.span.in_scope(|| {
            error!(requestId = request_id, %method, path, error = %refusal, "request failed");
        });
    }
}
