//! `prune`: does now what the janitor and the dispatcher do from time to time, or shows what they would do.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use sqlx::PgConnection;

use crate::domain::delivery::KEPT_MS;
use crate::full_callers::FullCallers;
use crate::job_health::JobHealth;
use crate::jobs::janitor::{Janitor, LastRun, Report};
use crate::jobs::prune_preview::{Preview, preview};
use crate::runtime_config::SharedRuntimeConfig;
use crate::store::delivery_queue;

use super::error::CliError;
use super::progress_bar::ProgressBar;
use super::session::Session;
use super::table::{FormatOption, Table};

/// Deliveries that one statement deletes.
const ROWS_MAX: i64 = 1000;

#[derive(Args, Debug)]
pub struct Prune {
    /// Show what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pruned {
    dry_run: bool,
    #[serde(flatten)]
    rows: Preview,
}

impl Prune {
    pub async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let janitor = janitor(session).await?;
        let planned = preview(&janitor).await?;
        let rows = if self.dry_run { planned } else { prune(session, &janitor, &planned).await? };
        let pruned = Pruned { dry_run: self.dry_run, rows };
        self.format.print(session, &pruned, Pruned::to_table).await
    }
}

async fn janitor(session: &Session<'_>) -> Result<Janitor, CliError> {
    let clock = session.clock.clone();
    Ok(Janitor {
        settings: session.settings.janitor.clone(),
        pool: session.pool.clone(),
        runtime_config: SharedRuntimeConfig::new(session.runtime_config().await?),
        last_run: LastRun::default(),
        health: JobHealth::new(clock.clone()),
        full: FullCallers::default(),
        cursors: Arc::default(),
        clock,
    })
}

async fn prune(session: &Session<'_>, janitor: &Janitor, planned: &Preview) -> Result<Preview, CliError> {
    let progress = ProgressBar::of(planned.rows().unsigned_abs(), "rows");
    let mut pruned = Preview { expired_records: 0, evicted_records: 0, events: 0, deliveries: 0 };
    loop {
        let mut report = Report::default();
        let has_more = janitor.round(&mut report).await?;
        if !report.was_alone {
            return Err(CliError::Refused("a janitor of the service is at work: run the command again".to_owned()));
        }
        let evicted = report.over_caller_cap + report.over_total_cap;
        pruned.expired_records += report.expired;
        pruned.evicted_records += evicted;
        pruned.events += report.events;
        progress.add((report.expired + evicted + report.events) as usize);
        if !has_more {
            break;
        }
    }
    let kept_since = janitor.clock.now().plus_ms(-KEPT_MS);
    loop {
        let step = async |connection: &mut PgConnection| delivery_queue::prune(connection, kept_since, ROWS_MAX).await;
        let deleted = session.read(step).await?;
        pruned.deliveries += deleted;
        progress.add(deleted as usize);
        if deleted < ROWS_MAX {
            return Ok(pruned);
        }
    }
}

impl Pruned {
    fn to_table(&self) -> Table {
        let bound = if self.dry_run { "at most " } else { "" };
        let mut table = Table::default();
        let mut add = |name: &str, bound: &str, count: i64| table.add([name, &format!("{bound}{count}")]);
        add("expired idempotency records", "", self.rows.expired_records);
        add("live idempotency records over a cap", bound, self.rows.evicted_records);
        add("events beyond the log", bound, self.rows.events);
        add("old deliveries", "", self.rows.deliveries);
        table
    }
}
