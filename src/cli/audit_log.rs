//! `audit export`: who changed what, oldest first.

use clap::{Args, Subcommand};
use sqlx::PgConnection;

use crate::domain::audit_log::Entry;
use crate::domain::timestamp::Timestamp;
use crate::store::audit_log::{self, AuditCursor};

use super::error::CliError;
use super::export_file::{ExportFile, FileFormat};
use super::moment::{FORMS, Moment};
use super::session::Session;

/// Number of entries that one statement reads.
const PAGE: i64 = 1000;

const HEADER: &str = "id,changedAt,actor,address,requestId,operation,tenantId,objectId,before,after";

#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Export the audit log, oldest changes first. A file that was broken off is no valid JSON, and the exit code is 1.
    Export(Export),
}

#[derive(Args, Debug)]
pub struct Export {
    #[arg(long, value_parser = Moment::parse, help = format!("Only changes of this moment or later: {FORMS}"))]
    since: Option<Moment>,
    /// CSV has times as texts, and JSON is an array of the HTTP API's entries.
    #[arg(long, value_enum, default_value_t)]
    format: FileFormat,
}

impl Audit {
    pub async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let Self::Export(export) = self;
        export.run(session).await
    }
}

impl Export {
    async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let since = self.since.map_or(Timestamp::from_ms(0), |since| since.before(session.clock.now()));
        let mut after = AuditCursor::before(since);
        let mut file = ExportFile::new(self.format);
        let mut text = file.start(HEADER);
        loop {
            let read = async |connection: &mut PgConnection| audit_log::export(connection, after, PAGE).await;
            let page = session.read(read).await?;
            for (_, entry) in &page {
                file.write(&mut text, entry, || fields(entry));
            }
            match page.last().filter(|_| page.len() as i64 == PAGE) {
                Some((last, _)) => after = *last,
                None => break,
            }
            session.output.write(std::mem::take(&mut text)).await?;
        }
        text.extend_from_slice(file.end());
        Ok(session.output.write(text).await?)
    }
}

fn fields(entry: &Entry) -> [String; 10] {
    let Entry { id, changed_at, actor, address, request_id, operation, tenant_id, object_id, before, after } = entry;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let json =
        |object: &Option<_>| object.as_ref().map(|object| serde_json::json!(object).to_string()).unwrap_or_default();
    [
        id.clone(),
        changed_at.to_rfc_3339(),
        actor.clone(),
        text(address),
        text(request_id),
        operation.clone(),
        text(tenant_id),
        text(object_id),
        json(before),
        json(after),
    ]
}
