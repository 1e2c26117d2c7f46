//! Settles one pair, or all pairs of an agent, on the ledger of the batch: each at the current price.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::money::{Count, Stroops};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::settlement::Settlement;
use crate::domain::usage::Pair;

use super::Request;
use super::reply::Reply;
use super::work::{Outcome, Work};

/// The 200 of POST settle.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled<'a> {
    agent: &'a AgentId,
    #[serde(flatten)]
    item: SettledItem<'a>,
}

/// The 200 of POST settle/bulk.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSettled<'a> {
    agent: &'a AgentId,
    items: Vec<SettledItem<'a>>,
    total_billed_stroops: Stroops,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct SettledItem<'a> {
    service_id: &'a ServiceId,
    requests: Count,
    price_stroops: i64,
    billed_stroops: Stroops,
}

/// Nothing due is a bill of nothing: counted and told, but not kept in the ledger of bills.
pub fn apply(work: &mut Work<'_>, request: &Request, pair: &Pair) -> Outcome {
    // An id that is valid no longer names what exists, and nothing else.
    let has_valid_ids = pair.agent.is_valid() && pair.service_id.is_valid();
    if !has_valid_ids && !work.ledger.contains(&request.tenant, pair) {
        return Err(Refusal::AgentAndService);
    }
    if work.require_registered_services && work.terms(&request.tenant, &pair.service_id).is_none() {
        return Err(Refusal::ServiceNotRegistered(pair.service_id.clone()));
    }
    let item = bill(work, request, pair, false);
    Ok(Reply::json(200, &Settled { agent: &pair.agent, item }))
}

/// `pairs` are all pairs of the agent in the order of their creation. Only those with something due are settled, and where
/// services have to be registered only those that have a price.
pub fn apply_to_agent(work: &mut Work<'_>, request: &Request, agent: &AgentId, pairs: &[&Pair]) -> Outcome {
    if pairs.is_empty() && !agent.is_valid() {
        return Err(Refusal::Agent);
    }
    let items: Vec<SettledItem<'_>> = pairs.iter().map(|pair| bill(work, request, pair, true)).collect();
    let mut total_billed_stroops = Stroops::default();
    for item in &items {
        total_billed_stroops += item.billed_stroops;
    }
    Ok(Reply::json(200, &AgentSettled { agent, items, total_billed_stroops }))
}

fn bill<'a>(work: &mut Work<'_>, request: &Request, pair: &'a Pair, bulk: bool) -> SettledItem<'a> {
    let tenant = &request.tenant;
    let price = work.terms(tenant, &pair.service_id).map(|terms| terms.price_stroops);
    // A service that is not registered costs nothing, or is left alone.
    let price_stroops = price.unwrap_or(0);
    let is_billed = price.is_some() || !work.require_registered_services;
    let requests = if is_billed { work.ledger.settle(tenant, pair) } else { 0 };
    let billed_stroops = Stroops::bill(requests, price_stroops);
    if requests > 0 {
        let settlement = Settlement {
            id: identifiers::draw(work.dice, "stl_", 16),
            agent: pair.agent.clone(),
            service_id: pair.service_id.clone(),
            requests: Count(requests),
            price_stroops,
            billed_stroops,
            settled_at: work.now,
            idempotency_key: request.keyed.as_ref().map(|keyed| keyed.id.key.clone()),
            request_id: request.request_id.clone(),
        };
        work.settlements.push((tenant.clone(), settlement));
        work.totals_of(tenant).settled_stroops += billed_stroops;
        if price.is_none() {
            work.unpriced.push((tenant.clone(), pair.service_id.clone()));
        }
    }
    if requests > 0 || !bulk {
        work.totals_of(tenant).settlements += 1;
        let event = Event::UsageSettled {
            agent: pair.agent.clone(),
            service_id: pair.service_id.clone(),
            requests: Count(requests),
            billed_stroops,
            bulk,
        };
        work.events.push((tenant.clone(), event));
    }
    SettledItem { service_id: &pair.service_id, requests: Count(requests), price_stroops, billed_stroops }
}
