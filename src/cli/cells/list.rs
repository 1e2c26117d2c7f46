//! `cells list`: what each cell holds and how busy it is. A cell that does not answer is listed with the reason.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::error::CliError;
use crate::cli::session::{READ_LIMIT, Session};
use crate::cli::table::{FormatOption, Table};
use crate::settings::cells::CellSettings;
use crate::start;
use crate::store::cells::{self, Cell, Contents};
use crate::store::{StoreError, tenant_moves};

use super::listed;

/// The rate of a cell is measured for this long.
const MEASURED: Duration = Duration::from_secs(1);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    cells: Vec<Row>,
    moves: Vec<MoveRow>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    /// `None`: it was not added.
    number: Option<i16>,
    accepts_tenants: bool,
    weight: u32,
    /// `ok`, `draining`, `not added`, or why it cannot be used.
    state: String,
    tenants: Option<i64>,
    bytes: Option<i64>,
    /// Requests recorded per second.
    recorded_per_second: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MoveRow {
    tenant_id: String,
    from: String,
    to: String,
    step: String,
}

pub async fn run(session: &Session<'_>, format: FormatOption) -> Result<(), CliError> {
    let mut home = listed::connect(listed::home(session)).await?;
    let added = cells::list(&mut home).await?;
    let deployment = cells::identity(&mut home).await?.map(|own| own.deployment);
    let unfinished = tenant_moves::list(&mut home).await?;
    let rows = session.settings.cells.iter().map(|cell| row(cell, &added, deployment.as_deref()));
    let moves = unfinished.into_iter().map(|unfinished| MoveRow {
        tenant_id: unfinished.tenant.to_string(),
        from: unfinished.from.to_string(),
        to: unfinished.to.to_string(),
        step: unfinished.step,
    });
    let listed = Listed { cells: futures_util::future::join_all(rows).await, moves: moves.collect() };
    format.print(session, &listed, Listed::to_table).await
}

async fn row(settings: &CellSettings, added: &[Cell], deployment: Option<&str>) -> Row {
    let known = added.iter().find(|cell| cell.id == settings.id);
    let accepts_tenants = known.is_some_and(|cell| cell.accepts_tenants);
    let read = timeout(READ_LIMIT, measure(settings, deployment)).await;
    let (state, found) = match read.unwrap_or(Err(CliError::Store(StoreError::TimedOut))) {
        Ok(found) if accepts_tenants => ("ok".to_owned(), Some(found)),
        Ok(found) => ("draining".to_owned(), Some(found)),
        Err(_) if known.is_none() => ("not added".to_owned(), None),
        Err(CliError::Store(error)) => (error.cause(), None),
        Err(error) => (error.to_string(), None),
    };
    Row {
        id: settings.id.to_string(),
        number: known.map(|cell| cell.number),
        accepts_tenants,
        weight: settings.weight,
        state,
        tenants: found.map(|(contents, _)| contents.tenants),
        bytes: found.map(|(contents, _)| contents.bytes),
        recorded_per_second: found.map(|(_, rate)| rate),
    }
}

/// What the cell holds, and the requests that it records per second.
async fn measure(settings: &CellSettings, deployment: Option<&str>) -> Result<(Contents, f64), CliError> {
    let mut connection = listed::connect(settings).await?;
    start::check_cell(&mut connection, &settings.id, deployment).await?;
    let (before, began) = (cells::contents(&mut connection).await?, Instant::now());
    sleep(MEASURED).await;
    let after = cells::contents(&mut connection).await?;
    let rate = (after.recorded - before.recorded) as f64 / began.elapsed().as_secs_f64();
    Ok((after, rate.round()))
}

impl Listed {
    fn to_table(&self) -> Table {
        let mut table = Table::with_header(["CELL", "NUMBER", "STATE", "WEIGHT", "TENANTS", "MB", "RECORDED/S"]);
        let text = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
        for row in &self.cells {
            table.add([
                row.id.clone(),
                text(row.number.map(i64::from)),
                row.state.clone(),
                row.weight.to_string(),
                text(row.tenants),
                text(row.bytes.map(|bytes| bytes / 1_000_000)),
                row.recorded_per_second.map(|rate| rate.to_string()).unwrap_or_default(),
            ]);
        }
        for row in &self.moves {
            table.add([format!("{} moves from {} to {}: {}", row.tenant_id, row.from, row.to, row.step)]);
        }
        table
    }
}
