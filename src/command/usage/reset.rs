//! Clears the outstanding usage of a pair without billing it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::event::Event;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::Pair;

use crate::command::context::BatchContext;
use crate::command::reply::Reply;
use crate::command::request::Request;

/// The response to a reset.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ResetUsage")]
pub struct Cleared<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    cleared_total: Count,
}

pub fn apply(context: &mut BatchContext<'_, '_>, request: &Request, pair: &Pair) -> Result<Reply, Refusal> {
    let counter = context.counters.find(&request.tenant, pair);
    let Some(cleared_total) = context.counters.reset(counter) else {
        return Err(Refusal::NoUsage(pair.clone()));
    };
    let event = Event::UsageReset { agent: pair.agent.clone(), service_id: pair.service_id.clone(), cleared_total };
    context.effects.events.push((request.tenant.clone(), event));
    Ok(Reply::json(200, &Cleared { agent: &pair.agent, service_id: &pair.service_id, cleared_total }))
}
