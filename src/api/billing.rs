//! Billing quotes: what settling would cost now, for one pair or for all of a tenant.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use crate::domain::money::{Count, Stroops};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::store::{services, totals, usage};

use super::exchange::{Failure, Read, json};
use super::state::ApiState;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Quote<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    requests: Count,
    price_stroops: i64,
    billed_stroops: Stroops,
}

pub async fn quote(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let pair = super::usage::path_pair(&exchange)?;
    let tenant = &exchange.identity.tenant;
    let mut connection = state.connection().await?;
    let service = services::find(&mut connection, tenant, &pair.service_id).await?;
    let service = service.ok_or_else(|| Refusal::ServiceNotRegistered(pair.service_id.clone()))?;
    let requests = usage::outstanding(&mut connection, tenant, &pair).await?;
    Ok(json(&Quote {
        agent: &pair.agent,
        service_id: &pair.service_id,
        requests: Count(requests),
        price_stroops: service.price_stroops,
        billed_stroops: Stroops::bill(requests, service.price_stroops),
    }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Total {
    total_stroops: Stroops,
    disabled_stroops: Stroops,
    unpriced_requests: Count,
}

pub async fn total(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let mut connection = state.connection().await?;
    let due = totals::due(&mut connection, &exchange.identity.tenant).await?;
    Ok(json(&Total {
        total_stroops: due.total_stroops,
        disabled_stroops: due.disabled_stroops,
        unpriced_requests: Count(due.unpriced_requests),
    }))
}
