//! Lookup of idempotency records.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::caller::{Caller, ClientAddress, Tenant};
use crate::domain::names::IdempotencyKey;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::query::key_outcome::KeyOutcome;
use crate::query::{idempotency, key_outcome, tenants};

use crate::api::openapi::description::{Description, text};
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
    let key = parse_key(&request)?;
    let id = request.caller_key(key.as_str().to_owned());
    let cell = request.cell(&state);
    let now = cell.clock.now();
    let record = idempotency::find(&cell.reader, &id, now, request.deadline).await?.ok_or(Refusal::KeyUnknown)?;
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

pub const FIND_OUTCOME: Description = Description::of(
    "getIdempotencyOutcome",
    "Get the outcome of an idempotency key",
    "Returns the outcome of a key of `tenantId`, which the operator may have used for it, or of a client without an API key at \
         `address`: the request, the stored response, until when it is kept, and what it recorded or billed. Without `method` and \
         the other members of a record, the record was deleted after it had expired, and only settlements are left. After POST \
         usage/bulk, `usage` may include events of other bulk requests of the same commit with the same totals.",
)
.query(&[
    text("tenantId", "Tenant whose API key the request had, or that the operator named."),
    text("address", "Address of the client, if the request had no API key."),
])
.answer::<KeyOutcome>(
    200,
    r#"{"key":"order-1","caller":"tenant:tnt_0123456789abcdef0123456789abcdef","method":"POST","path":"/api/v1/usage","requestId":"r-1",
        "status":201,"response":{"agent":"agent-1","serviceId":"weather","total":3},"createdAt":1767225600000,
        "expiresAt":1767312000000,"isLive":true,"usage":[{"agent":"agent-1","serviceId":"weather","requests":3,"total":3}],
        "settlements":[]}"#,
)
.refuses(&["not_found", "invalid_idempotency_key"]);

pub async fn find_outcome(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let key = parse_key(&request)?;
    let text = |name: &str| request.query.text(name).filter(|text| !text.is_empty());
    let caller = match (text("tenantId"), text("address")) {
        (Some(tenant), None) => Caller::Tenant(Tenant::from_stored(tenant.to_owned())),
        (None, Some(address)) => Caller::Address(ClientAddress::from_text(address)),
        _ => return Err(Refusal::KeyOwner.into()),
    };
    // A tenant that is not known has no keys anywhere.
    let resident = match &caller {
        Caller::Tenant(tenant) => tenants::find(&state.home().reader, tenant, request.deadline).await?,
        Caller::Address(_) => None,
    };
    let reader = &state.cells[state.cell_index(resident.and_then(|resident| resident.cell).as_ref())?].reader;
    let outcome = key_outcome::find(reader, &caller, key.as_str(), request.deadline).await?;
    Ok(json(&outcome.ok_or(Refusal::KeyUnknown)?))
}

fn parse_key(request: &ReadRequest) -> Result<IdempotencyKey, Refusal> {
    IdempotencyKey::literal(request.parameter("key").to_owned()).map_err(|_| Refusal::KeySyntax)
}
