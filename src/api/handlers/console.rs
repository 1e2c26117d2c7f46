//! Serves the operator's console: one page with its scripts and its style sheet, all compiled in. The page loads nothing from
//! elsewhere and uses the API like any other client. The page itself is public; what it shows needs the operator's key.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::domain::refusal::Refusal;

use crate::api::request::errors::ApiError;
use crate::api::request::etag;
use crate::api::request::read::ReadRequest;

/// Scripts, styles, images and requests of this origin only. No string becomes HTML or code.
const CSP: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
);

const PAGE: &str = "index.html";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

struct File {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
    tag: String,
}

macro_rules! files {
    ($($name:literal: $media_type:expr),* $(,)?) => {
        [$({
            let text = include_str!(concat!("console/", $name));
            File { name: $name, media_type: $media_type, text, tag: etag::tag(text.as_bytes(), $name) }
        }),*]
    };
}

static FILES: LazyLock<[File; 13]> = LazyLock::new(|| {
    files! {
        "index.html": HTML,
        "console.css": CSS,
        "icon.svg": SVG,
        "main.js": SCRIPT,
        "api.js": SCRIPT,
        "page.js": SCRIPT,
        "confirm.js": SCRIPT,
        "plot.js": SCRIPT,
        "overview.js": SCRIPT,
        "billing.js": SCRIPT,
        "webhooks.js": SCRIPT,
        "keys.js": SCRIPT,
        "operations.js": SCRIPT,
    }
});

pub async fn page(headers: HeaderMap) -> Result<Response, ApiError> {
    let mut response = send(PAGE, &headers).ok_or(Refusal::Internal)?;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, CSP);
    Ok(response)
}

pub async fn file(headers: HeaderMap, request: ReadRequest) -> Result<Response, ApiError> {
    let name = request.parameter("file");
    let found = if name == PAGE { None } else { send(name, &headers) };
    let received = &request.received;
    let refuse = || Refusal::NoRoute { method: received.method.to_string(), path: received.path.clone() };
    Ok(found.ok_or_else(refuse)?)
}

/// The file of this name, or 304 if the client has it.
fn send(name: &str, headers: &HeaderMap) -> Option<Response> {
    let file = FILES.iter().find(|file| file.name == name)?;
    let mut response = if etag::is_known(headers, &file.tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, file.media_type)], Body::from(file.text)).into_response()
    };
    let tag = HeaderValue::from_str(&file.tag).expect("hexadecimal");
    response.headers_mut().insert(header::ETAG, tag);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}

/// Leads a browser from `/` to the console. `None` for other requests, such as those of API clients.
pub fn entrance(request: &Request) -> Option<Response> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("text/html"));
    let is_browser = request.headers().get_all(header::ACCEPT).iter().any(accepts);
    if !is_read || request.uri().path() != "/" || !is_browser {
        return None;
    }
    let headers = [(header::LOCATION, "/console"), (header::VARY, "Accept"), (header::CACHE_CONTROL, "no-store")];
    Some((StatusCode::SEE_OTHER, headers).into_response())
}
