//! Usage: record it, one record or many, and read what is outstanding.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::command::BatchedCommand;
use crate::command::answers::{BulkRecorded, Cleared, Recorded};
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::{Pair, REQUESTS_MAX, UsageRecord, integer};
use crate::store::usage::CounterId;

use crate::api::openapi::bodies;
use crate::api::openapi::description::Description;
use crate::api::request::errors::ApiError;
use crate::api::request::fields;
use crate::api::request::path::PairPath;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::request::write::WriteRequest;
use crate::api::state::ApiState;

pub const RECORD: Description = Description::of(
    "recordUsage",
    "Record usage",
    "Adds requests to the counter of the pair and returns what is outstanding. The service need not be \
         registered unless `REQUIRE_REGISTERED_SERVICES` is true.",
)
.body(bodies::USAGE, r#"{"agent":"agent-1","serviceId":"weather","requests":3}"#)
.answer::<Recorded<'static>>(201, r#"{"agent":"agent-1","serviceId":"weather","total":3}"#)
.refuses(&["not_found", "service_disabled", "store_capacity_exceeded"]);

pub async fn record(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_record(&write.body).map(BatchedCommand::RecordUsage);
    write.submit(&state, command).await
}

pub const RECORD_BULK: Description = Description::of(
    "recordUsageBulk",
    "Record usage in bulk",
    "Records each item separately. The results are in the order of the items. Later items see \
         earlier ones.",
)
.body(bodies::USAGE_BULK, r#"{"items":[{"agent":"agent-1","serviceId":"weather","requests":3}]}"#)
.answer::<BulkRecorded>(
    201,
    r#"{"results":[{"index":0,"ok":true,"total":3},{"index":1,"ok":false,"error":"invalid_item"}]}"#,
);

pub async fn record_bulk(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command =
        parse_items(&write.body, state.runtime_config.limits().bulk_max_items).map(BatchedCommand::RecordUsageBulk);
    write.submit(&state, command).await
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PairUsage")]
struct Outstanding<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    total: Count,
}

pub const OUTSTANDING: Description = Description::of(
    "getPairUsage",
    "Get outstanding usage of a pair",
    "Returns the requests that are recorded and neither settled nor reset. An unknown pair has 0.",
)
.answer::<Outstanding<'static>>(200, r#"{"agent":"agent-1","serviceId":"weather","total":3}"#);

pub async fn outstanding(
    State(state): State<ApiState>,
    request: ReadRequest,
    PairPath(pair): PairPath,
) -> Result<Response, ApiError> {
    let id = CounterId { tenant: request.tenant().clone(), pair };
    let cell = request.cell(&state);
    let quote = cell.polled.quotes.load(&cell.reader, id.clone(), request.deadline).await?;
    let Pair { agent, service_id } = &id.pair;
    Ok(json(&Outstanding { agent, service_id, total: quote.outstanding }))
}

pub const RESET: Description = Description::of(
    "resetPairUsage",
    "Reset usage of a pair",
    "Sets the counter of the pair to zero without billing it.",
)
.answer::<Cleared<'static>>(200, r#"{"agent":"agent-1","serviceId":"weather","clearedTotal":3}"#)
.refuses(&["not_found"]);

pub async fn reset(
    State(state): State<ApiState>,
    pair: Result<PairPath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    write.submit(&state, pair.map(|PairPath(pair)| BatchedCommand::ResetUsage(pair))).await
}

fn parse_record(body: &Value) -> Result<UsageRecord, Refusal> {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let agent = text("agent").and_then(AgentId::parse).ok_or(Refusal::Agent)?;
    let service_id = text("serviceId").and_then(ServiceId::parse).ok_or(Refusal::Service)?;
    let requests = body.get("requests").and_then(integer).filter(|requests| (1..=REQUESTS_MAX).contains(requests));
    Ok(UsageRecord { pair: Pair { agent, service_id }, requests: requests.map(Count).ok_or(Refusal::Requests)? })
}

fn parse_items(body: &Value, bulk_max_items: i64) -> Result<Vec<Option<UsageRecord>>, Refusal> {
    fields::check(body, &["items"])?;
    match body.get("items").and_then(Value::as_array) {
        Some(items) if (1..=bulk_max_items).contains(&(items.len() as i64)) => {
            Ok(items.iter().map(|item| parse_record(item).ok()).collect())
        }
        _ => Err(Refusal::UsageItems { bulk_max_items }),
    }
}
