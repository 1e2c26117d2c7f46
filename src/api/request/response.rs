//! Responses of handlers.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::command::Reply;

/// A 200 with a JSON body.
pub fn json(body: &impl Serialize) -> Response {
    respond(Reply::json(200, body))
}

pub fn respond(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match reply.body {
        Some(body) => {
            (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], Body::from(body)).into_response()
        }
        None => status.into_response(),
    }
}
