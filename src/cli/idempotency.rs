//! `idempotency`: the outcome of a key, and how many records there are.

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;

use crate::domain::caller::{Caller, ClientAddress, Tenant};
use crate::domain::settlement::Settlement;
use crate::query::key_outcome::{self, KeyOutcome};
use crate::store::{StoreError, caller_totals, full_callers, retention};

use super::error::CliError;
use super::scope::Scope;
use super::session::Session;
use super::table::{FormatOption, Table};

/// Full callers that are counted.
const FULL_MAX: i64 = 10_000;

#[derive(Debug, Subcommand)]
pub enum Idempotency {
    /// Show the outcome of a key: the request, the stored response, until when it is kept, and what it recorded or billed.
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
            (None, Some(text)) => Caller::Address(ClientAddress::from_text(text)),
            (tenant, _) => Caller::Tenant(Tenant::from_stored(tenant.clone().unwrap_or_default())),
        }
    }
}

impl Idempotency {
    pub fn scope(&self) -> Scope<'_> {
        match self {
            // Records of clients without an API key are in the home cell.
            Self::Show(Show { owner: Owner { tenant: None, .. }, .. }) => Scope::Home,
            Self::Show(show) => Scope::of(show.owner.tenant.as_ref()),
            Self::Stats { .. } => Scope::Cell,
        }
    }

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

impl Show {
    async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let caller = self.owner.caller();
        let find = async |connection: &mut PgConnection| key_outcome::read(connection, &caller, &self.key).await;
        let tenant = match &caller {
            Caller::Tenant(tenant) => tenant.clone(),
            Caller::Address(_) => Tenant::public(),
        };
        let Some(found) = session.read_of(Some(&tenant), find).await? else {
            return Err(CliError::Refused(format!(
                "{caller} has no record of this key: no request with it was executed, or the record has expired"
            )));
        };
        self.format.print(session, &found, to_table).await
    }
}

fn to_table(found: &KeyOutcome) -> Table {
    let mut table = Table::default();
    table.add(["key", &found.key]);
    table.add(["caller", &found.caller]);
    match &found.record {
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
    for event in &found.usage {
        table.add(["usage", event.get()]);
    }
    for settlement in &found.settlements {
        let Settlement { id, agent, service_id, requests, price_stroops, billed_stroops, .. } = settlement;
        let text = format!("{id}: {agent} {service_id}, {requests} × {price_stroops} = {billed_stroops} stroops");
        table.add(["settlement", &text]);
    }
    table
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
