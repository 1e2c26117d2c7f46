//! The list of settlements, newest first.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::money::SAFE_MAX;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::query::settlements;
use crate::store::settlements::Filter;

use crate::api::openapi::description::{CURSOR, Description, SINCE, identifier, limit};
use crate::api::request::cursors::Cursor;
use crate::api::request::errors::ApiError;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "SettlementList")]
struct List {
    items: Vec<Settlement>,
    next_cursor: Option<String>,
}

pub const LIST: Description = Description::of(
    "listSettlements",
    "List settlements",
    "Returns the permanent record of settlements, newest first.",
)
.query(&[
    identifier("agent", "Agent whose settlements to return."),
    identifier("serviceId", "Service whose settlements to return."),
    SINCE,
    limit(100, 1000),
    CURSOR,
])
.answer::<List>(
    200,
    r#"{"items":[{"id":"stl_0123456789abcdef0123456789abcdef","agent":"agent-1","serviceId":"weather","requests":3,
        "priceStroops":250,"billedStroops":750,"settledAt":1767225600000,"idempotencyKey":"bill-1","requestId":"r-1"}],
        "nextCursor":null}"#,
);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let query = &request.query;
    let text = |name: &str| query.text(name).filter(|text| !text.is_empty());
    let since = query.bounded("since", 0, 0, SAFE_MAX as i64);
    let filter = Filter {
        agent: text("agent").map(|text| AgentId::parse_existing(text).ok_or(Refusal::Agent)).transpose()?,
        service_id: text("serviceId")
            .map(|text| ServiceId::parse_existing(text).ok_or(Refusal::Service))
            .transpose()?,
        since: Some(Timestamp::from_ms(since)),
    };
    let limit = query.bounded("limit", 100, 1, 1000);
    let before = query.cursor_of()?;
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let page = settlements::list(&cell.reader, tenant, &filter, before, limit, request.deadline).await?;
    let next_cursor = page.last_if_more().map(|(cursor, _)| encode_cursor(&cursor.to_text()));
    let items = page.rows.into_iter().map(|(_, settlement)| settlement).collect();
    Ok(json(&List { items, next_cursor }))
}

pub const SHOW: Description =
    Description::of("getSettlement", "Get a settlement", "Returns one settlement of the tenant.")
        .answer::<Settlement>(
            200,
            r#"{"id":"stl_0123456789abcdef0123456789abcdef","agent":"agent-1","serviceId":"weather","requests":3,
        "priceStroops":250,"billedStroops":750,"settledAt":1767225600000,"idempotencyKey":"bill-1","requestId":"r-1"}"#,
        )
        .refuses(&["not_found"]);

pub async fn show(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let id = request.parameter("id");
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let settlement = settlements::find(&cell.reader, tenant, id, request.deadline).await?;
    Ok(json(&settlement.ok_or_else(|| Refusal::SettlementNotFound(id.to_owned()))?))
}
