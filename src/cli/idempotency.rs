//! `idempotency`: what became of a key, and how many records there are.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::PgConnection;

use crate::domain::caller::{Caller, ClientAddress, Tenant};
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::{StoredMoment, Timestamp};
use crate::store::idempotency::{self, CallerKey, FullRecord};
use crate::store::{StoreError, caller_totals, events, full_callers, retention, settlements};

use super::error::CliError;
use super::session::Session;
use super::table::{FormatOption, Table};

/// Settlements and events of one request that are shown. A bulk settlement has at most 5000.
const EFFECTS_MAX: i64 = 5000;
/// Full callers that are counted.
const FULL_MAX: i64 = 10_000;

#[derive(Debug, Subcommand)]
pub enum Idempotency {
    /// Show what became of a key: the request, the stored response, until when it is kept, and what it recorded or billed.
    ///
    /// Exit code 1 if nothing is known of the key: no request with it was executed, or its record has expired and was
    /// deleted. Settlements are found by their key after that, too.
    Show(Show),
    /// Show how many records there are, and which callers have the most.
    Stats {
        /// How many callers are shown.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        #[command(flatten)]
        format: FormatOption,
    },
}

#[derive(Args, Debug)]
pub struct Show {
    /// The idempotency key, without the quotes it may have been sent in.
    key: String,
    #[command(flatten)]
    owner: Owner,
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Owner {
    /// The tenant whose API key the request had.
    #[arg(long)]
    tenant: Option<String>,
    /// The address of the client, if the request had no API key.
    #[arg(long)]
    address: Option<String>,
}

impl Owner {
    fn caller(&self) -> Caller {
        match (&self.tenant, &self.address) {
            (None, Some(text)) => Caller::Address(match text.parse::<IpAddr>() {
                Ok(address) => address.into(),
                Err(_) => ClientAddress::unreadable(text.trim_start_matches('?').as_bytes()),
            }),
            (tenant, _) => Caller::Tenant(Tenant::from_stored(tenant.clone().unwrap_or_default())),
        }
    }
}

impl Idempotency {
    pub async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        match self {
            Self::Show(show) => show.run(session).await,
            Self::Stats { limit, format } => {
                let stats = session.read(async |connection: &mut PgConnection| stats(connection, *limit).await).await?;
                format.print(session, &stats, Stats::to_table).await
            }
        }
    }
}

/// What is known of a key.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    key: String,
    caller: String,
    /// None if the record was deleted, and only settlements are left.
    #[serde(flatten)]
    record: Option<ShownRecord>,
    /// The events by which it recorded or reset usage.
    usage: Vec<Box<RawValue>>,
    settlements: Vec<Settlement>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownRecord {
    method: String,
    path: String,
    request_id: String,
    status: i16,
    response: Option<Box<RawValue>>,
    created_at: Timestamp,
    expires_at: Timestamp,
    is_live: bool,
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

impl Show {
    async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let caller = self.owner.caller();
        let find = async |connection: &mut PgConnection| find(connection, &caller, &self.key).await;
        let Some(found) = session.read(find).await? else {
            return Err(CliError::Refused(format!(
                "{caller} has no record of this key: no request with it was executed, or the record has expired"
            )));
        };
        self.format.print(session, &found, Found::to_table).await
    }
}

async fn find(connection: &mut PgConnection, caller: &Caller, key: &str) -> Result<Option<Found>, StoreError> {
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
        return Ok((!settlements.is_empty()).then_some(Found {
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
    Ok(Some(Found { key: id.key, caller: id.caller, record: Some(found.into()), usage, settlements }))
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

impl Found {
    fn to_table(&self) -> Table {
        let mut table = Table::default();
        table.add(["key", &self.key]);
        table.add(["caller", &self.caller]);
        match &self.record {
            None => table.add(["record", "deleted after it expired"]),
            Some(record) => {
                table.add(["request", &format!("{} {}", record.method, record.path)]);
                table.add(["request id", &record.request_id]);
                table.add(["executed at", &record.created_at.to_rfc_3339()]);
                let kept = if record.is_live { "" } else { " (expired)" };
                table.add(["expires at", &format!("{}{kept}", record.expires_at.to_rfc_3339())]);
                table.add(["status", &record.status.to_string()]);
                table.add(["response", record.response.as_deref().map_or("none", RawValue::get)]);
            }
        }
        for event in &self.usage {
            table.add(["usage", event.get()]);
        }
        for settlement in &self.settlements {
            let Settlement { id, agent, service_id, requests, price_stroops, billed_stroops, .. } = settlement;
            let text = format!("{id}: {agent} {service_id}, {requests} × {price_stroops} = {billed_stroops} stroops");
            table.add(["settlement", &text]);
        }
        table
    }
}

/// How many records there are.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    records: i64,
    /// Of these, how many have expired and wait for the janitor.
    expired: i64,
    /// How many callers get no new records, at most 10 000.
    full_callers: usize,
    callers: Vec<CallerStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallerStats {
    caller: String,
    records: i64,
    bytes: i64,
    is_full: bool,
}

async fn stats(connection: &mut PgConnection, limit: i64) -> Result<Stats, StoreError> {
    let full = full_callers::list(connection, FULL_MAX).await?;
    let callers = caller_totals::over(connection, 0, 0, limit).await?.into_iter().map(|total| CallerStats {
        is_full: full.contains(&total.caller),
        caller: total.caller,
        records: total.records,
        bytes: total.bytes,
    });
    let callers = callers.collect();
    Ok(Stats {
        records: caller_totals::records(connection).await?,
        expired: retention::count_expired(connection).await?,
        full_callers: full.len(),
        callers,
    })
}

impl Stats {
    fn to_table(&self) -> Table {
        let mut table = Table::with_header(["CALLER", "RECORDS", "BYTES", "NOTE"]);
        for CallerStats { caller, records, bytes, is_full } in &self.callers {
            let note = if *is_full { "full: gets no new records" } else { "" };
            table.add([caller.as_str(), &records.to_string(), &bytes.to_string(), note]);
        }
        let note = format!("{} expired, {} callers full", self.expired, self.full_callers);
        table.add(["all callers", &self.records.to_string(), "", &note]);
        table
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
