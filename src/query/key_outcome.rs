//! What became of an idempotency key, for operators: its record with the stored response, and what its request recorded or
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

/// Settlements and events of one request that are shown. A bulk settlement has at most 5000.
const EFFECTS_MAX: i64 = 5000;

/// What is known of a key. Without a record, it was deleted, and only settlements are left.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyOutcome {
    pub key: String,
    pub caller: String,
    #[serde(flatten)]
    pub record: Option<ShownRecord>,
    /// The events by which it recorded or reset usage.
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
        let settlements = settlements::with_key(connection, &tenant, key, ever, EFFECTS_MAX).await?;
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
    let mut settlements = settlements::with_key(connection, &tenant, key, executed..=executed, EFFECTS_MAX).await?;
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
    let events = events::at(connection, tenant, record.created_at, type_name, EFFECTS_MAX).await?;
    let payloads = events.into_iter().map(|event| event.payload);
    Ok(payloads.filter(|payload| is_told_by(&response, payload)).collect())
}

/// Whether a response tells of an event. No two events of a pair have the same total at the same moment.
fn is_told_by(response: &Value, payload: &RawValue) -> bool {
    let Ok(event) = serde_json::from_str::<Value>(payload.get()) else { return false };
    match response["results"].as_array() {
        Some(results) => event["bulk"] == true && results.iter().any(|result| result["total"] == event["total"]),
        None => ["agent", "serviceId", "total", "clearedTotal"].iter().all(|name| event[name] == response[name]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(response: &Value, event: &str) -> bool {
        is_told_by(response, &RawValue::from_string(event.to_owned()).expect("JSON"))
    }

    #[test]
    fn a_response_tells_of_the_events_of_its_request_only() {
        let recorded = json!({ "agent": "a", "serviceId": "s", "total": 3 });
        assert!(told(&recorded, r#"{"agent":"a","serviceId":"s","requests":2,"total":3}"#));
        assert!(!told(&recorded, r#"{"agent":"a","serviceId":"s","requests":2,"total":5}"#));
        assert!(!told(&recorded, r#"{"agent":"b","serviceId":"s","requests":2,"total":3}"#));
        let bulk = json!({ "results": [{ "index": 0, "ok": true, "total": 3 }, { "index": 1, "ok": false }] });
        assert!(told(&bulk, r#"{"agent":"a","serviceId":"s","requests":2,"total":3,"bulk":true}"#));
        assert!(!told(&bulk, r#"{"agent":"a","serviceId":"s","requests":2,"total":3}"#));
        let reset = json!({ "agent": "a", "serviceId": "s", "clearedTotal": 3 });
        assert!(told(&reset, r#"{"agent":"a","serviceId":"s","clearedTotal":3}"#));
    }
}
