//! Clears what is outstanding of a pair, without billing it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::event::Event;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::Pair;

use super::Request;
use super::reply::Reply;
use super::work::{Outcome, Work};

/// The 200 of DELETE usage.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ResetUsage")]
pub struct Cleared<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    cleared_total: Count,
}

pub fn apply(work: &mut Work<'_>, request: &Request, pair: &Pair) -> Outcome {
    let Some(requests) = work.ledger.reset(&request.tenant, pair) else {
        return Err(Refusal::NoUsage(pair.clone()));
    };
    let cleared_total = Count(requests);
    let event = Event::UsageReset { agent: pair.agent.clone(), service_id: pair.service_id.clone(), cleared_total };
    work.events.push((request.tenant.clone(), event));
    Ok(Reply::json(200, &Cleared { agent: &pair.agent, service_id: &pair.service_id, cleared_total }))
}
