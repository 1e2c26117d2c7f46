//! Lookup of idempotency records.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::names::IdempotencyKey;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::query::idempotency;

use crate::api::openapi::description::Description;
use crate::api::request::errors::ApiError;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "IdempotencyRecord")]
struct Found<'a> {
    key: &'a str,
    method: &'a str,
    path: &'a str,
    status: i16,
    created_at: Timestamp,
    expires_at: Timestamp,
    request_id: &'a str,
}

pub const FIND: Description = Description::of(
    "getIdempotencyRecord",
    "Get an idempotency record",
    "Returns which request the caller's key was used with, its status, and when the record expires. The \
         stored response itself is not shown: repeat the request to get it.",
)
.answer::<Found<'static>>(
    200,
    r#"{"key":"order-1","method":"POST","path":"/api/v1/usage","status":201,"createdAt":1767225600000,
        "expiresAt":1767312000000,"requestId":"r-1"}"#,
)
.refuses(&["not_found", "invalid_idempotency_key"]);

pub async fn find(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let key = IdempotencyKey::literal(request.parameter("key").to_owned()).map_err(|_| Refusal::KeySyntax)?;
    let id = request.caller_key(key.as_str().to_owned());
    let now = state.clock.now();
    let record = idempotency::find(&state.reader, &id, now, request.deadline).await?.ok_or(Refusal::KeyUnknown)?;
    Ok(json(&Found {
        key: key.as_str(),
        method: &record.method,
        path: &record.path,
        status: record.status,
        created_at: record.created_at.into(),
        expires_at: record.expires_at.into(),
        request_id: &record.request_id,
    }))
}
