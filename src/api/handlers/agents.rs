//! Agents: the list of agents, and their outstanding usage.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::query::agents;
use crate::query::page::Pages;

use crate::api::openapi::description::{Description, PAGE, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::path::AgentPath;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "AgentList")]
struct List {
    agents: Vec<AgentId>,
    #[serde(flatten)]
    pages: Option<Pages>,
}

pub const LIST: Description = Description::of(
    "listAgents",
    "List agents",
    "Returns the agents that have any pair, including pairs with nothing outstanding, ordered by first use.",
)
.query(&[limit(100, 1000), PAGE])
.answer::<List>(200, r#"{"agents":["agent-1"]}"#);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let slice = request.query.slice(100, 1000);
    let cell = request.cell(&state);
    let (agents, count) = agents::list(&cell.reader, request.tenant(), slice, request.deadline).await?;
    Ok(json(&List { agents, pages: slice.pages(count) }))
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "AgentTotal")]
struct Total<'a> {
    agent: &'a AgentId,
    total: Count,
}

pub const TOTAL: Description = Description::of(
    "getAgentTotal",
    "Get the outstanding total of an agent",
    "Returns the requests that are recorded and neither settled nor reset, over all services. An unknown \
         agent has 0.",
)
.answer::<Total<'static>>(200, r#"{"agent":"agent-1","total":3}"#);

pub async fn total(
    State(state): State<ApiState>,
    request: ReadRequest,
    AgentPath(agent): AgentPath,
) -> Result<Response, ApiError> {
    let cell = request.cell(&state);
    let total = agents::outstanding(&cell.reader, request.tenant(), &agent, request.deadline).await?;
    Ok(json(&Total { agent: &agent, total }))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "AgentUsageItem")]
struct Item {
    service_id: ServiceId,
    total: Count,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "AgentUsage")]
struct Usage<'a> {
    agent: &'a AgentId,
    items: Vec<Item>,
    #[serde(flatten)]
    pages: Option<Pages>,
}

pub const USAGE: Description = Description::of(
    "listAgentUsage",
    "List outstanding usage of an agent",
    "Returns the outstanding requests of each service that the agent has used, including services with \
         nothing outstanding. An unknown agent has no items.",
)
.query(&[limit(100, 1000), PAGE])
.answer::<Usage<'static>>(200, r#"{"agent":"agent-1","items":[{"serviceId":"weather","total":3}]}"#);

pub async fn usage(
    State(state): State<ApiState>,
    request: ReadRequest,
    AgentPath(agent): AgentPath,
) -> Result<Response, ApiError> {
    let slice = request.query.slice(100, 1000);
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let (pairs, count) = agents::pairs(&cell.reader, tenant, &agent, slice, request.deadline).await?;
    let items = pairs.into_iter().map(|(service_id, total)| Item { service_id, total }).collect();
    Ok(json(&Usage { agent: &agent, items, pages: slice.pages(count) }))
}
