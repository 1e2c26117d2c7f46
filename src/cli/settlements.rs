//! `settlements export`: the ledger as a file, from one snapshot, the newest settlements of each tenant first.

use std::io::{self, IsTerminal};

use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::domain::caller::Tenant;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::{StoredMoment, Timestamp};
use crate::store::pool::Held;
use crate::store::settlements::{self, Filter, SettlementCursor};
use crate::store::{StoreError, server, tenant_moves, tenants};

use super::error::CliError;
use super::export_file::{ExportFile, FileFormat};
use super::moment::{FORMS, Moment};
use super::progress_bar::ProgressBar;
use super::scope::{self, Scope};
use super::session::{READ_LIMIT, Session};

/// Settlements, and tenants, that one statement reads.
const PAGE: i64 = 1000;

const HEADER: &str =
    "tenantId,id,agent,serviceId,requests,priceStroops,billedStroops,settledAt,idempotencyKey,requestId";

#[derive(Debug, Subcommand)]
pub enum Settlements {
    /// Export settlements. A file that was broken off is no valid JSON, and the exit code is 1.
    Export(Export),
}

#[derive(Args, Debug)]
pub struct Export {
    /// The tenant whose settlements are exported. Without it, those of all tenants are.
    #[arg(long)]
    tenant: Option<String>,
    #[arg(long, value_parser = Moment::parse, help = format!("Only settlements of this moment or later: {FORMS}"))]
    since: Option<Moment>,
    /// Only settlements before this moment.
    #[arg(long, value_parser = Moment::parse)]
    until: Option<Moment>,
    /// CSV has times as texts, and JSON is an array of the HTTP API's settlements with their tenants.
    #[arg(long, value_enum, default_value_t)]
    format: FileFormat,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    tenant_id: &'a Tenant,
    #[serde(flatten)]
    settlement: &'a Settlement,
}

impl Settlements {
    pub fn scope(&self) -> Scope<'_> {
        let Self::Export(export) = self;
        Scope::of(export.tenant.as_ref())
    }

    pub async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let Self::Export(export) = self;
        export.run(session).await
    }
}

impl Export {
    async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let mut held = session.pool.hold(deadline()).await?;
        held.run(deadline(), server::hold_snapshot).await?;
        if let Some(id) = &self.tenant {
            let tenant = Tenant::from_stored(id.clone());
            let read = async |snapshot: &mut PgConnection| tenant_moves::is_complete(snapshot, &tenant).await;
            let is_complete = held.run(deadline(), read).await?;
            scope::check_complete(&tenant, is_complete)?;
        }
        // On one terminal it would be mixed with the file.
        let progress = (!io::stdout().is_terminal()).then(|| ProgressBar::counting("settlements"));
        let mut file = ExportFile::new(self.format);
        let mut text = file.start(HEADER);
        let mut after = String::new();
        loop {
            let read = async |snapshot: &mut PgConnection| self.tenants(snapshot, &after).await;
            let tenants = held.run(deadline(), read).await?;
            for tenant in &tenants {
                self.export(session, &mut held, tenant, &mut file, &mut text, progress.as_ref()).await?;
            }
            match tenants.last().filter(|_| tenants.len() as i64 == PAGE) {
                Some(last) => after = last.as_str().to_owned(),
                None => break,
            }
        }
        text.extend_from_slice(file.end());
        Ok(session.output.write(text).await?)
    }

    async fn tenants(&self, snapshot: &mut PgConnection, after: &str) -> Result<Vec<Tenant>, StoreError> {
        match &self.tenant {
            Some(id) => Ok(vec![Tenant::from_stored(id.clone())]),
            None => tenants::list(snapshot, after, PAGE).await,
        }
    }

    async fn export(
        &self,
        session: &Session<'_>,
        held: &mut Held,
        tenant: &Tenant,
        file: &mut ExportFile,
        text: &mut Vec<u8>,
        progress: Option<&ProgressBar>,
    ) -> Result<(), CliError> {
        let now = session.clock.now();
        let filter = Filter { since: self.since.map(|since| since.before(now)), ..Filter::default() };
        let mut before = self.until.map(|until| start_of(until.before(now)));
        loop {
            let read = async |snapshot: &mut PgConnection| {
                settlements::list(snapshot, tenant, &filter, before.clone(), PAGE).await
            };
            let page = held.run(deadline(), read).await?;
            for (_, settlement) in &page {
                file.write(text, &Line { tenant_id: tenant, settlement }, || fields(tenant, settlement));
            }
            if let Some(progress) = progress {
                progress.add(page.len());
            }
            let is_last = (page.len() as i64) < PAGE;
            before = page.into_iter().last().map(|(cursor, _)| cursor);
            if is_last {
                return Ok(());
            }
            session.output.write(std::mem::take(text)).await?;
        }
    }
}

/// The cursor before which everything is earlier than `moment`.
fn start_of(moment: Timestamp) -> SettlementCursor {
    SettlementCursor { settled_at: StoredMoment::from(moment), list_position: i64::MIN, id: String::new() }
}

fn deadline() -> Instant {
    Instant::now() + READ_LIMIT
}

fn fields(tenant: &Tenant, settlement: &Settlement) -> [String; 10] {
    let Settlement { id, agent, service_id, requests, price_stroops, billed_stroops, .. } = settlement;
    [
        tenant.to_string(),
        id.clone(),
        agent.as_str().to_owned(),
        service_id.as_str().to_owned(),
        requests.to_string(),
        price_stroops.to_string(),
        billed_stroops.to_string(),
        settlement.settled_at.to_rfc_3339(),
        settlement.idempotency_key.clone().unwrap_or_default(),
        settlement.request_id.clone(),
    ]
}
