//! `cells move` and `cells drain`. A move that fails or is interrupted is undone, unless the tenant has arrived.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use crate::cell::placement;
use crate::cli::error::CliError;
use crate::cli::progress_bar::ProgressBar;
use crate::cli::session::Session;
use crate::cli::table::{FormatOption, Table};
use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;
use crate::jobs::tenant_move::{MoveError, TenantMove, check_movable};
use crate::store::directory::CellTenants;
use crate::store::{cells, citus, directory, tenant_copy, tenant_moves};

use super::listed;

/// How long a move that was interrupted may take to be undone.
const UNDO_LIMIT: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub struct Move {
    tenant: String,
    /// The cell that the tenant is moved to.
    #[arg(long, required_unless_present = "undo")]
    to: Option<String>,
    /// Undo a move that was interrupted before the tenant arrived.
    #[arg(long, conflicts_with = "dry_run")]
    undo: bool,
    /// Show what would be moved, and move nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Args, Debug)]
pub struct Drain {
    cell: String,
    /// Show what would be moved where, and move nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatOption,
}

/// A move as it was made, or as it would be.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    tenant_id: String,
    from: String,
    to: String,
    dry_run: bool,
    rows: i64,
    /// How long writes were refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_ms: Option<u64>,
    /// The rows of each table, in a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableRows>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TableRows {
    table: String,
    rows: i64,
}

impl Move {
    /// `None`: a signal came first.
    pub async fn run(&self, session: &Session<'_>) -> Result<Option<()>, CliError> {
        let tenant = Tenant::from_stored(self.tenant.clone());
        let to = self.to.as_deref().map(|id| listed::cell(session, id).map(|cell| &cell.id)).transpose()?;
        let Some(found) = TenantMove::find(&session.settings.cells, &tenant, to).await? else {
            session.print(format!("{tenant} lives there already")).await?;
            return Ok(Some(()));
        };
        if self.undo {
            found.undo().await?;
            session.print(format!("{tenant} stays in {}", found.from.id)).await?;
            return Ok(Some(()));
        }
        let Some(made) = make(session, &found, self.dry_run).await? else { return Ok(None) };
        self.format.print(session, &made, |made| to_table(std::slice::from_ref(made))).await?;
        Ok(Some(()))
    }
}

impl Drain {
    /// `None`: a signal came first.
    pub async fn run(&self, session: &Session<'_>) -> Result<Option<()>, CliError> {
        let drained = listed::cell(session, &self.cell)?;
        check_movable(drained, drained.dialect())?;
        let mut source = listed::connect(drained).await?;
        check_movable(drained, citus::dialect(&mut source).await?)?;
        let mut home = listed::connect(listed::home(session)).await?;
        if !self.dry_run {
            cells::set_accepts(&mut home, &drained.id, false).await?;
        }
        let tenants = tenant_moves::residents(&mut source).await?;
        let tenants: Vec<Tenant> = tenants.into_iter().filter(|tenant| *tenant != Tenant::public()).collect();
        let mut accepting = directory::accepting(&mut home).await?;
        let others = session.settings.cells.iter().filter(|cell| cell.id != drained.id && !cell.dialect().is_citus());
        let others = others.map(|cell| (&cell.id, cell.weight));
        let mut moves = Vec::new();
        for tenant in tenants {
            // A tenant whose first key could not be created is used by nobody.
            if directory::find(&mut home, &tenant).await?.is_none() {
                continue;
            }
            let unfinished = tenant_moves::find(&mut home, &tenant).await?;
            let to = match unfinished {
                Some(unfinished) => unfinished.to,
                None => next(others.clone(), &mut accepting)?.clone(),
            };
            // It arrived and was not deleted yet, or moves here.
            let Some(found) = TenantMove::find(&session.settings.cells, &tenant, Some(&to)).await? else { continue };
            let Some(made) = make(session, &found, self.dry_run).await? else { return Ok(None) };
            moves.push(made);
        }
        self.format.print(session, &moves, |moves| to_table(moves)).await?;
        Ok(Some(()))
    }
}

/// The cell with the fewest tenants for its weight, which gets one more.
fn next<'a>(
    cells: impl Iterator<Item = (&'a CellId, u32)>,
    accepting: &mut [CellTenants],
) -> Result<&'a CellId, CliError> {
    let least = placement::least_filled(cells, accepting);
    let id = least.ok_or_else(|| CliError::Refused("no other cell accepts tenants".to_owned()))?;
    accepting.iter_mut().filter(|cell| cell.cell == *id).for_each(|cell| cell.tenants += 1);
    Ok(id)
}

/// Makes a move, or counts what it would move. `None`: a signal came first, and the move is undone.
async fn make(session: &Session<'_>, found: &TenantMove<'_>, dry_run: bool) -> Result<Option<Made>, CliError> {
    let counting = async { tenant_copy::count(&mut listed::connect(found.from).await?, &found.tenant).await };
    let Some(tables) = session.stop.race(counting).await.transpose().map_err(CliError::Store)? else { return Ok(None) };
    let total: i64 = tables.iter().map(|(_, rows)| rows).sum();
    let made = |rows, refused_ms, tables| Made {
        tenant_id: found.tenant.to_string(),
        from: found.from.id.to_string(),
        to: found.to.id.to_string(),
        dry_run,
        rows,
        refused_ms,
        tables,
    };
    if dry_run {
        let tables = tables.into_iter().map(|(table, rows)| TableRows { table, rows });
        return Ok(Some(made(total, None, tables.collect())));
    }
    let progress = ProgressBar::of(total.unsigned_abs(), "rows");
    let note = |rows: u64| progress.add(rows as usize);
    let moved = session.stop.race(found.run(&note, async |_| {})).await;
    drop(progress);
    match moved {
        Some(Ok(moved)) => Ok(Some(made(moved.rows as i64, Some(moved.fenced.as_millis() as u64), Vec::new()))),
        Some(Err(error @ (MoveError::Undone(..) | MoveError::InDoubt(_)))) => Err(error.into()),
        Some(Err(error)) => Err(CliError::Refused(format!("{error}; {}", undo(found).await))),
        None => {
            session.print(undo(found).await).await?;
            Ok(None)
        }
    }
}

/// Undoes a move, and reports the outcome.
async fn undo(found: &TenantMove<'_>) -> String {
    match timeout(UNDO_LIMIT, found.undo()).await {
        Ok(Ok(())) => format!("{} stays in {}", found.tenant, found.from.id),
        Ok(Err(error @ MoveError::Arrived(_))) => error.to_string(),
        Ok(Err(error)) => format!("it could not be undone ({error}): run the move again, or with --undo"),
        Err(_) => "it could not be undone in time: run the move again, or with --undo".to_owned(),
    }
}

fn to_table(moves: &[Made]) -> Table {
    let mut table = Table::with_header(["TENANT", "FROM", "TO", "ROWS", "WRITES REFUSED"]);
    for made in moves {
        let refused = made.refused_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
        table.add([&made.tenant_id, &made.from, &made.to, &made.rows.to_string(), &refused]);
        for row in &made.tables {
            table.add([&format!("  {}", row.table), "", "", &row.rows.to_string(), ""]);
        }
    }
    table
}
