//! Settling one pair, or all pairs of an agent.

use axum::extract::State;
use axum::response::Response;
use serde_json::Value;

use crate::command::BatchedCommand;
use crate::command::answers::{AgentSettled, Settled};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::Pair;

use crate::api::openapi::bodies;
use crate::api::openapi::description::Description;
use crate::api::request::errors::ApiError;
use crate::api::request::write::WriteRequest;
use crate::api::state::ApiState;

pub const SETTLE: Description = Description::of(
    "settlePair",
    "Settle a pair",
    "Bills the outstanding requests of the pair at the current price and sets its counter to zero. With \
         nothing outstanding, 0 is billed and no settlement is stored.",
)
.body(bodies::PAIR, r#"{"agent":"agent-1","serviceId":"weather"}"#)
.answer::<Settled<'static>>(
    200,
    r#"{"agent":"agent-1","serviceId":"weather","requests":3,"priceStroops":250,"billedStroops":750}"#,
)
.refuses(&["not_found"]);

pub async fn settle(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let text = |name: &str| write.body.get(name).and_then(Value::as_str);
    let agent = text("agent").and_then(AgentId::parse_existing);
    let service_id = text("serviceId").and_then(ServiceId::parse_existing);
    let pair = agent.zip(service_id).map(|(agent, service_id)| Pair { agent, service_id });
    let command = pair.map(BatchedCommand::Settle).ok_or(Refusal::AgentAndService);
    write.submit(&state, command).await
}

pub const SETTLE_AGENT: Description = Description::of(
    "settleAgent",
    "Settle all pairs of an agent",
    "Bills the outstanding requests of every pair of the agent, up to 5000 pairs per call. While `hasMore` \
         is true, call again with a new key.",
)
.body(bodies::AGENT, r#"{"agent":"agent-1"}"#)
.answer::<AgentSettled<'static>>(
    200,
    r#"{"agent":"agent-1","items":[{"serviceId":"weather","requests":3,"priceStroops":250,"billedStroops":750}],
        "totalBilledStroops":750}"#,
);

pub async fn settle_agent(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let agent = write.body.get("agent").and_then(Value::as_str).and_then(AgentId::parse_existing);
    write.submit(&state, agent.map(BatchedCommand::SettleAgent).ok_or(Refusal::Agent)).await
}
