//! API keys. All of these routes are the operator's.

use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use rand::rngs::StdRng;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::cell::placement::{self, Placed};
use crate::command::answers::{CreatedApiKey, RotatedApiKey};
use crate::command::{TenantOfKey, TransactionalCommand};
use crate::domain::api_key::{ApiKeyInfo, KeyLimits, RATE_LIMIT_MAX, Scopes};
use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::integer;
use crate::query::api_keys;
use crate::store::api_keys::Start;

use crate::api::openapi::bodies;
use crate::api::openapi::description::{CURSOR, Description, OFFSET, limit};
use crate::api::request::cursors::Cursor;
use crate::api::request::errors::ApiError;
use crate::api::request::fields;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::request::write::WriteRequest;
use crate::api::state::ApiState;

/// Maximum length of a label and of a tenant id, in UTF-16 code units.
const TEXT_MAX: usize = 64;

pub const CREATE: Description = Description::of(
    "createApiKey",
    "Create an API key",
    "Returns the key, which is shown only in this response. Without `tenantId` a new tenant is created, in the `cell` \
         if one is named. Without `scopes` the key may do everything that its tenant may.",
)
.body(bodies::API_KEY, r#"{"label":"billing"}"#)
.answer::<CreatedApiKey<'static>>(
    201,
    r#"{"key":"apk_0123456789abcdef0123456789abcdef","label":"billing",
        "tenantId":"tnt_0123456789abcdef0123456789abcdef"}"#,
)
.refuses(&["not_found", "store_capacity_exceeded"]);

pub async fn create(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let creation = parse_creation(&write.body, state.home().clock.now())?;
    let command = place(&state, creation, write.context.deadline).await;
    let mut response = write.submit(&state, command).await?;
    state.known_keys.invalidate();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The command of a creation. A new tenant is created in its cell before.
async fn place(state: &ApiState, creation: Creation, deadline: Instant) -> Result<TransactionalCommand, Refusal> {
    let Creation { label, mut tenant, cell, limits } = creation;
    match (&tenant, &cell) {
        (TenantOfKey::Existing(id), Some(cell)) => {
            placement::check_residence(&state.cells, cell, &Tenant::from_stored(id.clone()), deadline).await?;
        }
        (TenantOfKey::New, named) => {
            let keys_max = state.runtime_config.limits().api_key_store_max_keys;
            let rng = &mut rand::make_rng::<StdRng>();
            let placed = placement::place(&state.cells, named.as_ref(), keys_max, rng, deadline).await?;
            if let Some(Placed { tenant: new, cell }) = placed {
                tenant = TenantOfKey::Placed { tenant: new, cell: cell.id.clone() };
            }
        }
        _ => {}
    }
    Ok(TransactionalCommand::CreateApiKey { label, tenant, limits })
}

pub const ROTATE: Description = Description::of(
    "rotateApiKey",
    "Rotate an API key",
    "Creates a key with the label, the tenant, the scopes and the limit of this one. This one expires at the end of the \
         overlap. Without `expiresAt` the new key lives as long as this one was to live. A key can be rotated once.",
)
.optional_body(bodies::ROTATION, r#"{"overlapSeconds":3600}"#)
.answer::<RotatedApiKey<'static>>(
    201,
    r#"{"key":"apk_0123456789abcdef0123456789abcdef","label":"billing",
        "tenantId":"tnt_0123456789abcdef0123456789abcdef",
        "previous":{"prefix":"apk_76543210","expiresAt":1767229200000}}"#,
)
.refuses(&["not_found", "already_rotated"]);

pub async fn rotate(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_rotation(&write, state.home().clock.now());
    let mut response = change(&state, write, command).await?;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub const REVOKE: Description = Description::of(
    "revokeApiKey",
    "Revoke an API key",
    "Deletes the key, so that requests with it are no longer recognised.",
)
.empty()
.refuses(&["not_found"]);

pub async fn revoke(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_prefix(&write).map(|prefix| TransactionalCommand::RevokeApiKey { prefix });
    change(&state, write, command).await
}

/// Executes a command that may end the validity of the key with the prefix of the path.
async fn change(
    state: &ApiState,
    write: WriteRequest,
    command: Result<TransactionalCommand, Refusal>,
) -> Result<Response, ApiError> {
    let prefix = write.context.parameter("prefix").to_owned();
    let response = write.submit(state, command).await;
    let is_unchanged = response.as_ref().is_err_and(|error| error.refusal.changed_nothing());
    if !is_unchanged {
        state.known_keys.forget(&prefix);
    }
    response
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ApiKeyList")]
struct List {
    items: Vec<ApiKeyInfo>,
    total: i64,
    next_cursor: Option<String>,
}

pub const LIST: Description = Description::of(
    "listApiKeys",
    "List API keys",
    "Returns the live keys of all tenants by prefix, oldest first. The keys themselves are not stored.",
)
.query(&[limit(1000, 1000), OFFSET, CURSOR])
.answer::<List>(
    200,
    r#"{"items":[{"prefix":"apk_01234567","label":"billing","createdAt":1767225600000,
        "tenantId":"tnt_0123456789abcdef0123456789abcdef"}],"total":1,"nextCursor":null}"#,
);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let query = &request.query;
    let limit = query.bounded("limit", 1000, 1, 1000);
    let start = match query.cursor_of()? {
        Some(cursor) => Start::After(cursor),
        None => Start::Offset(query.bounded("offset", 0, 0, 1 << 40)),
    };
    let (page, total) = api_keys::list(&state.home().reader, &start, limit, request.deadline).await?;
    let next_cursor = page.last_if_more().map(|(cursor, _)| encode_cursor(&cursor.to_text()));
    let items = page.rows.into_iter().map(|(_, key)| key).collect();
    Ok(json(&List { items, total, next_cursor }))
}

fn parse_prefix(write: &WriteRequest) -> Result<String, Refusal> {
    let prefix = write.context.parameter("prefix");
    let is_plain = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_plain && (1..=64).contains(&prefix.len()) { Ok(prefix.to_owned()) } else { Err(Refusal::Prefix) }
}

struct Creation {
    label: String,
    tenant: TenantOfKey,
    cell: Option<CellId>,
    limits: KeyLimits,
}

fn parse_creation(body: &Value, now: Timestamp) -> Result<Creation, Refusal> {
    fields::check(body, &["label", "tenantId", "cell", "scopes", "expiresAt", "rateLimitPerWindow"])?;
    let is_short = |text: &&str| (1..=TEXT_MAX).contains(&fields::length(text));
    let label = body.get("label").and_then(Value::as_str).filter(is_short).filter(|label| !label.trim().is_empty());
    let label = label.ok_or(Refusal::Label)?.to_owned();
    let tenant = match body.get("tenantId") {
        None => TenantOfKey::New,
        Some(value) => TenantOfKey::Existing(value.as_str().filter(is_short).ok_or(Refusal::TenantId)?.to_owned()),
    };
    let cell = body.get("cell").map(parse_cell).transpose()?;
    let limits = KeyLimits {
        scopes: body.get("scopes").map(parse_scopes).transpose()?,
        expires_at: parse_expiry(body, now)?,
        rate_limit_per_window: body.get("rateLimitPerWindow").map(parse_limit).transpose()?,
    };
    Ok(Creation { label, tenant, cell, limits })
}

fn parse_cell(value: &Value) -> Result<CellId, Refusal> {
    value.as_str().and_then(CellId::parse).ok_or(Refusal::CellName)
}

fn parse_rotation(write: &WriteRequest, now: Timestamp) -> Result<TransactionalCommand, Refusal> {
    let prefix = parse_prefix(write)?;
    let body = &write.body;
    fields::check(body, &["overlapSeconds", "expiresAt"])?;
    let overlap_ms = fields::overlap_ms(body)?;
    let expires_at = parse_expiry(body, now)?;
    Ok(TransactionalCommand::RotateApiKey { prefix, overlap_ms, expires_at })
}

fn parse_scopes(value: &Value) -> Result<Scopes, Refusal> {
    let names = value.as_array().and_then(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    names.and_then(|names| Scopes::parse(names.into_iter())).ok_or(Refusal::ScopeNames)
}

fn parse_expiry(body: &Value, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
    let Some(value) = body.get("expiresAt") else { return Ok(None) };
    let moment = integer(value).map(Timestamp::from_ms).filter(|moment| *moment > now && *moment <= Timestamp::LAST);
    moment.map(Some).ok_or(Refusal::KeyExpiry)
}

fn parse_limit(value: &Value) -> Result<i64, Refusal> {
    let limit = integer(value).filter(|limit| (1..=RATE_LIMIT_MAX).contains(limit));
    limit.ok_or(Refusal::ConfigValue { key: "rateLimitPerWindow", max: RATE_LIMIT_MAX })
}
