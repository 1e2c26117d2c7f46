//! Records usage, one record or many, on the counters of the batch.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::event::Event;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::UsageRecord;

use crate::command::context::BatchContext;
use crate::command::reply::Reply;
use crate::command::request::Request;

/// The response to one record.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RecordedUsage")]
pub struct Recorded<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    total: Count,
}

/// The response to a bulk record: one result for each item, in the order of the items.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "RecordedUsageBulk")]
pub struct BulkRecorded {
    results: Vec<ItemResult>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "RecordedUsageItem")]
struct ItemResult {
    index: usize,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// Why a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    Unregistered,
    Disabled,
    Capacity,
}

pub fn apply(context: &mut BatchContext<'_, '_>, request: &Request, record: &UsageRecord) -> Result<Reply, Refusal> {
    match add(context, request, record, false) {
        Ok(total) => {
            let body = Recorded { agent: &record.pair.agent, service_id: &record.pair.service_id, total };
            Ok(Reply::json(201, &body))
        }
        Err(Rejection::Unregistered) => Err(Refusal::ServiceNotRegistered(record.pair.service_id.clone())),
        Err(Rejection::Disabled) => Err(Refusal::ServiceDisabled(record.pair.service_id.clone())),
        Err(Rejection::Capacity) => Err(Refusal::UsageCapacity),
    }
}

/// Items are applied in order. An item that is refused has an error at its index.
pub fn apply_bulk(context: &mut BatchContext<'_, '_>, request: &Request, items: &[Option<UsageRecord>]) -> Reply {
    let results = items.iter().enumerate().map(|(index, item)| {
        let total = match item {
            Some(record) => add(context, request, record, true).map_err(|rejection| match rejection {
                Rejection::Unregistered => "not_found",
                Rejection::Disabled => "service_disabled",
                Rejection::Capacity => "store_capacity_exceeded",
            }),
            None => Err("invalid_item"),
        };
        ItemResult { index, ok: total.is_ok(), error: total.err(), total: total.ok() }
    });
    Reply::json(201, &BulkRecorded { results: results.collect() })
}

/// Adds one record and its event. Returns the outstanding total.
fn add(
    context: &mut BatchContext<'_, '_>,
    request: &Request,
    record: &UsageRecord,
    bulk: bool,
) -> Result<Count, Rejection> {
    let (tenant, pair) = (&request.tenant, &record.pair);
    match context.pricing.of(tenant, &pair.service_id) {
        None if context.require_registered_services => return Err(Rejection::Unregistered),
        Some(terms) if terms.disabled => return Err(Rejection::Disabled),
        _ => {}
    }
    let counter = context.counters.find(tenant, pair);
    // Only a pair that rises above zero uses capacity.
    if context.counters.outstanding(counter).is_zero() && !context.reserve(tenant) {
        return Err(Rejection::Capacity);
    }
    let total = context.counters.record(counter, record.requests);
    let event = Event::UsageRecorded {
        agent: pair.agent.clone(),
        service_id: pair.service_id.clone(),
        requests: record.requests,
        total,
        bulk,
    };
    context.effects.events.push((tenant.clone(), event));
    Ok(total)
}
