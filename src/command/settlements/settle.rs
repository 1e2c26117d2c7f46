//! Settles one pair, or all pairs of an agent, each at its current price.

use std::ops::Not;

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::money::{Count, Price, Stroops};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::settlement::Settlement;
use crate::domain::usage::Pair;

use crate::command::context::{AgentPairs, BatchContext};
use crate::command::reply::Reply;
use crate::command::request::Request;

/// The response to the settlement of one pair.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "SettledPair")]
pub struct Settled<'a> {
    agent: &'a AgentId,
    #[serde(flatten)]
    item: SettledItem<'a>,
}

/// The response to the settlement of an agent.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "SettledAgent")]
pub struct AgentSettled<'a> {
    agent: &'a AgentId,
    items: Vec<SettledItem<'a>>,
    total_billed_stroops: Stroops,
    /// Present and true if more pairs are due. A call with a new key settles them.
    #[serde(skip_serializing_if = "Not::not")]
    has_more: bool,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct SettledItem<'a> {
    service_id: &'a ServiceId,
    requests: Count,
    price_stroops: Price,
    billed_stroops: Stroops,
}

/// If nothing is outstanding, the settlement counts and records an event, but no row is written.
pub fn apply(context: &mut BatchContext<'_, '_>, request: &Request, pair: &Pair) -> Result<Reply, Refusal> {
    // Invalid ids are accepted only for an existing pair: earlier versions allowed `.` and `..`.
    let has_valid_ids = pair.agent.is_valid() && pair.service_id.is_valid();
    if !has_valid_ids && !context.counters.exists(context.counters.find(&request.tenant, pair)) {
        return Err(Refusal::AgentAndService);
    }
    if context.require_registered_services && context.pricing.of(&request.tenant, &pair.service_id).is_none() {
        return Err(Refusal::ServiceNotRegistered(pair.service_id.clone()));
    }
    let item = bill(context, request, pair, false);
    Ok(Reply::json(200, &Settled { agent: &pair.agent, item }))
}

/// Settles the pairs with outstanding usage. Where services must be registered, those without a price are left out.
/// Pairs that are not settled are listed with 0.
pub fn apply_to_agent(
    context: &mut BatchContext<'_, '_>,
    request: &Request,
    agent: &AgentId,
) -> Result<Reply, Refusal> {
    let AgentPairs { pairs, has_more } = context.agents.of(&request.tenant, agent);
    // Usage of this batch was applied before, so its new pairs are included.
    let new = context.counters.new_services(&request.tenant, agent);
    let pair = |service_id: &ServiceId| Pair { agent: agent.clone(), service_id: service_id.clone() };
    let pairs: Vec<Pair> = pairs.iter().map(|(service_id, _)| service_id).chain(&new).map(pair).collect();
    if pairs.is_empty() && !agent.is_valid() {
        return Err(Refusal::Agent);
    }
    let items: Vec<SettledItem<'_>> = pairs.iter().map(|pair| bill(context, request, pair, true)).collect();
    let mut total_billed_stroops = Stroops::default();
    for item in &items {
        total_billed_stroops += item.billed_stroops;
    }
    Ok(Reply::json(200, &AgentSettled { agent, items, total_billed_stroops, has_more }))
}

fn bill<'a>(context: &mut BatchContext<'_, '_>, request: &Request, pair: &'a Pair, bulk: bool) -> SettledItem<'a> {
    let tenant = &request.tenant;
    let price = context.pricing.of(tenant, &pair.service_id).map(|terms| terms.price_stroops);
    // A service that is not registered has price 0, or is not settled.
    let price_stroops = price.unwrap_or_default();
    let is_billed = price.is_some() || !context.require_registered_services;
    let requests =
        if is_billed { context.counters.settle(context.counters.find(tenant, pair)) } else { Count::default() };
    let billed_stroops = Stroops::bill(requests, price_stroops);
    if !requests.is_zero() {
        let settlement = Settlement {
            id: identifiers::draw(context.rng, "stl_", 16),
            agent: pair.agent.clone(),
            service_id: pair.service_id.clone(),
            requests,
            price_stroops,
            billed_stroops,
            settled_at: context.now,
            idempotency_key: request.keyed.as_ref().map(|keyed| keyed.id.key.clone()),
            request_id: request.request_id.clone(),
        };
        context.settlements.push((tenant.clone(), settlement));
        context.effects.counts_of(tenant).settled_stroops += billed_stroops;
        if price.is_none() {
            context.unpriced.push((tenant.clone(), pair.service_id.clone()));
        }
    }
    if !requests.is_zero() || !bulk {
        context.effects.counts_of(tenant).settlements += 1;
        let event = Event::UsageSettled {
            agent: pair.agent.clone(),
            service_id: pair.service_id.clone(),
            requests,
            billed_stroops,
            bulk,
        };
        context.effects.events.push((tenant.clone(), event));
    }
    SettledItem { service_id: &pair.service_id, requests, price_stroops, billed_stroops }
}
