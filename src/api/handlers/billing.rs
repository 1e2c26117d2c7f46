//! Billing quotes: what settling would cost now, for one pair or for all pairs of a tenant.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::money::{Count, Price, Stroops};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::Pair;
use crate::store::usage::CounterId;

use crate::api::openapi::description::Description;
use crate::api::request::errors::ApiError;
use crate::api::request::path::PairPath;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Quote")]
struct Quote<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    requests: Count,
    price_stroops: Price,
    billed_stroops: Stroops,
}

pub const QUOTE: Description = Description::of(
    "getQuote",
    "Get a quote for a pair",
    "Returns what settling the pair would bill at the current price. Nothing is changed.",
)
.answer::<Quote<'static>>(
    200,
    r#"{"agent":"agent-1","serviceId":"weather","requests":3,"priceStroops":250,"billedStroops":750}"#,
)
.refuses(&["not_found"]);

pub async fn quote(
    State(state): State<ApiState>,
    request: ReadRequest,
    PairPath(pair): PairPath,
) -> Result<Response, ApiError> {
    let id = CounterId { tenant: request.tenant().clone(), pair };
    let cell = request.cell(&state);
    let quote = cell.polled.quotes.load(&cell.reader, id.clone(), request.deadline).await?;
    let Pair { agent, service_id } = &id.pair;
    let price_stroops = quote.price_stroops.ok_or_else(|| Refusal::ServiceNotRegistered(service_id.clone()))?;
    Ok(json(&Quote {
        agent,
        service_id,
        requests: quote.outstanding,
        price_stroops,
        billed_stroops: Stroops::bill(quote.outstanding, price_stroops),
    }))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "BillingTotal")]
struct Total {
    total_stroops: Stroops,
    disabled_stroops: Stroops,
    unpriced_requests: Count,
}

pub const TOTAL: Description = Description::of(
    "getBillingTotal",
    "Get the total due",
    "Returns what settling all pairs of the tenant would bill at current prices. `totalStroops` includes \
         `disabledStroops`. Requests of unregistered services count in `unpricedRequests` only.",
)
.answer::<Total>(200, r#"{"totalStroops":750,"disabledStroops":0,"unpricedRequests":0}"#);

pub async fn total(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let cell = request.cell(&state);
    let due = cell.polled.due.load(&cell.reader, request.tenant().clone(), request.deadline).await?;
    Ok(json(&Total {
        total_stroops: due.total_stroops,
        disabled_stroops: due.disabled_stroops,
        unpriced_requests: due.unpriced_requests,
    }))
}
