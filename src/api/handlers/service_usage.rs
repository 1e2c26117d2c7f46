//! Outstanding usage of one service, as a sum and by agent. The service need not be registered.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::query::page::{Pages, Slice};
use crate::query::service_usage;
use crate::store::service_usage::Order;

use crate::api::openapi::description::{Description, PAGE, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::path::ServicePath;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ServiceUsage")]
struct Sums<'a> {
    service_id: &'a ServiceId,
    total: Count,
    agents: i64,
}

pub const SUMS: Description = Description::of(
    "getServiceUsage",
    "Get outstanding usage of a service",
    "Returns the outstanding requests of the service, and how many agents have any. The service need not be \
         registered.",
)
.answer::<Sums<'static>>(200, r#"{"serviceId":"weather","total":3,"agents":1}"#);

pub async fn sums(
    State(state): State<ApiState>,
    request: ReadRequest,
    ServicePath(service_id): ServicePath,
) -> Result<Response, ApiError> {
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let sums = service_usage::sums(&cell.reader, tenant, &service_id, request.deadline).await?;
    Ok(json(&Sums { service_id: &service_id, total: sums.outstanding, agents: sums.agents }))
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "ServiceAgent")]
struct Item {
    agent: AgentId,
    total: Count,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ServiceAgents")]
struct Agents<'a> {
    service_id: &'a ServiceId,
    items: Vec<Item>,
    #[serde(flatten)]
    pages: Option<Pages>,
}

pub const AGENTS: Description = Description::of(
    "listServiceAgents",
    "List agents of a service",
    "Returns the agents with outstanding requests, ordered by first use.",
)
.query(&[limit(100, 1000), PAGE])
.answer::<Agents<'static>>(200, r#"{"serviceId":"weather","items":[{"agent":"agent-1","total":3}]}"#);

pub async fn agents(
    State(state): State<ApiState>,
    request: ReadRequest,
    ServicePath(service_id): ServicePath,
) -> Result<Response, ApiError> {
    show(&state, &request, &service_id, Order::FirstSeen, request.query.slice(100, 1000)).await
}

pub const TOP_AGENTS: Description = Description::of(
    "listTopAgents",
    "List top agents of a service",
    "Returns the agents with the most outstanding requests, ordered by total.",
)
.query(&[limit(10, 100), PAGE])
.answer::<Agents<'static>>(200, r#"{"serviceId":"weather","items":[{"agent":"agent-1","total":3}]}"#);

pub async fn top_agents(
    State(state): State<ApiState>,
    request: ReadRequest,
    ServicePath(service_id): ServicePath,
) -> Result<Response, ApiError> {
    show(&state, &request, &service_id, Order::Total, request.query.slice(10, 100)).await
}

async fn show(
    state: &ApiState,
    request: &ReadRequest,
    service_id: &ServiceId,
    order: Order,
    slice: Slice,
) -> Result<Response, ApiError> {
    let tenant = request.tenant();
    let cell = request.cell(state);
    let (agents, count) =
        service_usage::agents(&cell.reader, tenant, service_id, order, slice, request.deadline).await?;
    let items = agents.into_iter().map(|(agent, total)| Item { agent, total }).collect();
    Ok(json(&Agents { service_id, items, pages: slice.pages(count) }))
}
