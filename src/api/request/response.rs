//! Responses of handlers.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use crate::command::Reply;

/// The media type of all JSON responses.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// A 200 with a JSON body.
pub fn json(body: &impl Serialize) -> Response {
    respond(Reply::json(200, body))
}

pub fn respond(reply: Reply) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(body) = reply.body {
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        *response.body_mut() = Body::from(body);
    }
    response
}
