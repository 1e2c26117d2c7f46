//! The outcome of an idempotency key, for operators: its record with the stored response, and what its request recorded or
//! billed.

use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use crate::domain::caller::{Caller, Tenant};
use crate::domain::refusal::Refusal;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::{StoredMoment, Timestamp};
use crate::store::idempotency::{self, CallerKey, FullRecord};
use crate::store::{StoreError, events, settlements};

use super::reader::Reader;

/// Settlements of one request that are shown. A bulk settlement has at most 5000.
const SETTLEMENTS_MAX: i64 = 5000;
/// Events of one moment that are read. A commit has at most 11,000 (`COMMIT_BATCH_MAX` and a bulk request), and several commits
/// may have the same moment.
const EVENTS_MAX: i64 = 100_000;

/// What is known of a key. Without a record, it was deleted, and only settlements are left.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyOutcome {
    pub key: String,
    pub caller: String,
    #[serde(flatten)]
    pub record: Option<ShownRecord>,
    /// The events by which it recorded or reset usage. After a bulk request, they may include those of other bulk requests of
    /// the same commit with the same totals.
    #[schemars(with = "Vec<Map<String, Value>>")]
    pub usage: Vec<Box<RawValue>>,
    pub settlements: Vec<Settlement>,
}

// The record as operators see it. No doc comment: it would describe every schema that this is a part of.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownRecord {
    pub method: String,
    pub path: String,
    pub request_id: String,
    pub status: i16,
    /// The stored response. Null if it has no body.
    #[schemars(with = "Value")]
    pub response: Option<Box<RawValue>>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// Whether a request with the key is answered from the record.
    pub is_live: bool,
}

impl From<FullRecord> for ShownRecord {
    fn from(found: FullRecord) -> Self {
        let FullRecord { record, response, is_live } = found;
        Self {
            method: record.method,
            path: record.path,
            request_id: record.request_id,
            status: record.status,
            response: response.and_then(|text| RawValue::from_string(text).ok()),
            created_at: record.created_at.into(),
            expires_at: record.expires_at.into(),
            is_live,
        }
    }
}

/// What is known of a key of `caller`; `None` if nothing is.
pub async fn find(
    reader: &Reader,
    caller: &Caller,
    key: &str,
    deadline: Instant,
) -> Result<Option<KeyOutcome>, Refusal> {
    reader.read(deadline, async |connection: &mut PgConnection| read(connection, caller, key).await).await
}

pub async fn read(connection: &mut PgConnection, caller: &Caller, key: &str) -> Result<Option<KeyOutcome>, StoreError> {
    let id = CallerKey { caller: caller.to_string(), key: key.to_owned() };
    let tenant = match caller {
        Caller::Tenant(tenant) => tenant.clone(),
        Caller::Address(_) => Tenant::public(),
    };
    let Some(found) = idempotency::find_full(connection, &id).await? else {
        // Clients without API keys share their tenant, so a settlement does not tell whose key it has.
        let Caller::Tenant(_) = caller else { return Ok(None) };
        let ever = StoredMoment::FIRST..=StoredMoment::LAST;
        let settlements = settlements::with_key(connection, &tenant, key, ever, SETTLEMENTS_MAX).await?;
        let (key, caller) = (id.key, id.caller);
        return Ok((!settlements.is_empty()).then_some(KeyOutcome {
            key,
            caller,
            record: None,
            usage: vec![],
            settlements,
        }));
    };
    // What a request changes has the moment of its record.
    let executed = StoredMoment::from(found.record.created_at);
    let mut settlements = settlements::with_key(connection, &tenant, key, executed..=executed, SETTLEMENTS_MAX).await?;
    settlements.retain(|settlement| settlement.request_id == found.record.request_id);
    let usage = usage(connection, &tenant, &found).await?;
    Ok(Some(KeyOutcome { key: id.key, caller: id.caller, record: Some(found.into()), usage, settlements }))
}

/// The events by which the request of a record changed what is outstanding: those of its moment that say what its response
/// says.
async fn usage(
    connection: &mut PgConnection,
    tenant: &Tenant,
    found: &FullRecord,
) -> Result<Vec<Box<RawValue>>, StoreError> {
    let record = &found.record;
    let type_name = match (record.method.as_str(), record.path.trim_end_matches('/')) {
        ("POST", "/api/v1/usage" | "/api/v1/usage/bulk") => "usage.recorded",
        ("DELETE", _) => "usage.reset",
        _ => return Ok(Vec::new()),
    };
    let response: Value =
        found.response.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let events = events::at(connection, tenant, record.created_at, type_name, EVENTS_MAX).await?;
    Ok(told_by(&response, events.into_iter().map(|event| event.payload).collect()))
}

/// The events that a response tells of.
fn told_by(response: &Value, payloads: Vec<Box<RawValue>>) -> Vec<Box<RawValue>> {
    let events: Vec<Value> =
        payloads.iter().map(|payload| serde_json::from_str(payload.get()).unwrap_or_default()).collect();
    let is_told = match response["results"].as_array() {
        Some(results) => told_by_bulk(results, &events),
        None => events.iter().map(|event| is_told(response, event)).collect(),
    };
    payloads.into_iter().zip(is_told).filter_map(|(payload, is_told)| is_told.then_some(payload)).collect()
}

fn is_told(response: &Value, event: &Value) -> bool {
    ["agent", "serviceId", "total", "clearedTotal", "bulk"].iter().all(|name| event[name] == response[name])
}

/// The response to a bulk request does not name the pairs. Its events have its totals, in the order of its items, and follow each
/// other.
fn told_by_bulk(results: &[Value], events: &[Value]) -> Vec<bool> {
    let totals: Vec<&Value> =
        results.iter().filter(|result| result["ok"] == true).map(|result| &result["total"]).collect();
    let is_of = |event: &Value, total: &Value| event["bulk"] == true && event["total"] == *total;
    let mut is_told = vec![false; events.len()];
    for first in 0..(events.len() + 1).saturating_sub(totals.len()) {
        let own = first..first + totals.len();
        if events[own.clone()].iter().zip(&totals).all(|(event, total)| is_of(event, total)) {
            is_told[own].fill(true);
        }
    }
    if !is_told.contains(&true) {
        // Some of them were deleted from the event log, or events of another commit of the same moment are between them.
        for (event, is_told) in events.iter().zip(&mut is_told) {
            *is_told = totals.iter().any(|total| is_of(event, total));
        }
    }
    is_told
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The indexes of the events that a response tells of.
    fn told(response: &Value, events: &[Value]) -> Vec<Value> {
        let payload = |(index, event): (usize, &Value)| {
            let mut event = event.clone();
            event["index"] = index.into();
            RawValue::from_string(event.to_string()).expect("JSON")
        };
        let told = told_by(response, events.iter().enumerate().map(payload).collect());
        told.iter().map(|payload| serde_json::from_str::<Value>(payload.get()).expect("JSON")["index"].take()).collect()
    }

    fn recorded(agent: &str, total: u64) -> Value {
        json!({ "agent": agent, "serviceId": "s", "requests": 1, "total": total })
    }

    fn in_bulk(agent: &str, total: u64) -> Value {
        json!({ "agent": agent, "serviceId": "s", "requests": 1, "total": total, "bulk": true })
    }

    fn results(totals: &[Option<u64>]) -> Value {
        let result = |total: &Option<u64>| match total {
            Some(total) => json!({ "ok": true, "total": total }),
            None => json!({ "ok": false, "error": "invalid_item" }),
        };
        json!({ "results": totals.iter().map(result).collect::<Vec<_>>() })
    }

    #[test]
    fn a_response_tells_of_the_events_of_its_request_only() {
        let response = json!({ "agent": "a", "serviceId": "s", "total": 3 });
        assert_eq!(told(&response, &[recorded("a", 3), recorded("a", 5), recorded("b", 3), in_bulk("a", 3)]), [0]);
        let reset = json!({ "agent": "a", "serviceId": "s", "clearedTotal": 3 });
        assert_eq!(told(&reset, &[reset.clone(), json!({ "agent": "a", "serviceId": "s", "clearedTotal": 4 })]), [0]);
    }

    #[test]
    fn the_events_of_a_bulk_request_are_found_by_their_totals_in_order() {
        // Three bulk requests of one commit, with a single one between them.
        let events =
            [in_bulk("a", 1), in_bulk("b", 7), recorded("c", 1), in_bulk("d", 7), in_bulk("a", 2), in_bulk("b", 9)];
        assert_eq!(told(&results(&[Some(1), None, Some(7)]), &events), [0, 1]);
        assert_eq!(told(&results(&[Some(7)]), &events), [1, 3], "one total does not tell which");
        assert_eq!(told(&results(&[Some(7), Some(2)]), &events), [3, 4]);
        assert_eq!(told(&results(&[Some(9)]), &events), [5]);
        assert!(told(&results(&[None]), &events).is_empty());
        assert!(told(&results(&[Some(7)]), &[]).is_empty());
        // The first one was deleted from the event log.
        assert_eq!(told(&results(&[Some(1), Some(7)]), &events[1..2]), [0]);
    }
}
