//! The runtime configuration: operators read and change its limits here.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::command::TransactionalCommand;
use crate::domain::refusal::Refusal;
use crate::domain::runtime_config::{LIMITS, Limit, Limits};
use crate::domain::usage::integer;

use crate::api::openapi::bodies;
use crate::api::openapi::description::{CURSOR, Description, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::query;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::request::write::WriteRequest;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ConfigPage")]
struct Config {
    config: Limits,
    items: Vec<Item>,
    total: usize,
    next_cursor: Option<String>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "ConfigItem")]
struct Item {
    key: &'static str,
    value: i64,
}

pub const SHOW: Description = Description::of(
    "getConfig",
    "Get the runtime configuration",
    "Returns all limits in `config`, and one page of them as `items`, ordered by name.",
)
.query(&[limit(4, 4), CURSOR])
.answer::<Config>(
    200,
    r#"{"config":{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,
        "usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000},
        "items":[{"key":"apiKeyStoreMaxKeys","value":10000}],"total":8,"nextCursor":"YXBpS2V5U3RvcmVNYXhLZXlz"}"#,
);

pub async fn show(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let limit = request.query.bounded("limit", 4, 1, 4) as usize;
    let mut sorted = LIMITS;
    sorted.sort_unstable_by_key(|limit| limit.key);
    let names = sorted.map(|limit| limit.key);
    let page = query::page_of_names(&names, request.query.cursor()?.as_deref(), limit)?;
    let mut config = state.runtime_config.limits();
    let items = sorted[page.range].iter().map(|limit| Item { key: limit.key, value: *(limit.of)(&mut config) });
    Ok(json(&Config { items: items.collect(), config, total: LIMITS.len(), next_cursor: page.next_cursor }))
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "ChangedConfig")]
struct Changed {
    config: Limits,
}

pub const CHANGE: Description = Description::of(
    "updateConfig",
    "Update the runtime configuration",
    "Sets all limits that are sent, or none if one of them is refused. The change is stored and reaches the \
         other replicas within a second.",
)
    .optional_body(bodies::CONFIG, r#"{"bulkMaxItems":200}"#)
    .answer::<Changed>(
        200,
        r#"{"config":{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,
        "usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000}}"#,
    );

pub async fn change(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse(&write.body).map(TransactionalCommand::ChangeLimits);
    let deadline = write.context.deadline;
    let response = write.submit(&state, command).await;
    state.follow_config(deadline, response).await
}

/// Reports all unknown keys first. Then checks the values, in the order in which they are shown.
fn parse(body: &Value) -> Result<Vec<(Limit, i64)>, Refusal> {
    let members = body.as_object().ok_or(Refusal::BodyNotObject)?;
    let is_unknown = |key: &&String| !LIMITS.iter().any(|limit| limit.key == **key);
    let unknown: Vec<String> = members.keys().filter(is_unknown).cloned().collect();
    if !unknown.is_empty() {
        return Err(Refusal::ConfigKeys(unknown));
    }
    let mut changes = Vec::new();
    for limit in LIMITS {
        let Some(value) = members.get(limit.key) else { continue };
        let value = integer(value).filter(|value| (1..=limit.max).contains(value));
        changes.push((limit, value.ok_or(Refusal::ConfigValue { key: limit.key, max: limit.max })?));
    }
    Ok(changes)
}
