//! `cells`: the databases that hold the tenants, and where each tenant lives. docs/scaling.md describes cells.

mod list;
mod listed;
mod move_tenant;
mod verify;

use clap::Subcommand;
use sqlx::PgConnection;

use crate::domain::cell::CellId;
use crate::progress::Progress;
use crate::settings::cells::CellSettings;
use crate::start;
use crate::store::cells::{self, State};
use crate::store::{StoreError, citus};

use super::error::CliError;
use super::migrate::Migrate;
use super::session::Session;
use super::table::FormatOption;
use listed::{cell, connect, home};
use move_tenant::{Drain, Move};

#[derive(Debug, Subcommand)]
pub enum Cells {
    /// List the cells with their tenants, sizes and rates, and the moves that are not complete.
    List {
        #[command(flatten)]
        format: FormatOption,
    },
    /// Make an empty database of CELLS_FILE a cell, and apply all migrations to it. Can be run again after an interruption.
    Add {
        cell: String,
        /// Create the schema of the cell on the coordinator of Citus, and distribute it. CELLS_FILE says `citus = true`.
        #[arg(long)]
        citus: bool,
    },
    /// Apply all pending migrations, in one cell after the other.
    Migrate(Migrate),
    /// Check the sums of all cells, and that each tenant lives in one cell. Exit code 1 if anything is wrong.
    Verify,
    /// Move a tenant to another cell while it is used. Run it again after an interruption.
    Move(Move),
    /// Create no more tenants in a cell, and move its tenants to the others. Run it again after an interruption.
    Drain(Drain),
}

impl Cells {
    /// Returns whether everything is as it should be, or `None` if a signal came first.
    pub async fn run(&self, session: &Session<'_>) -> Result<Option<bool>, CliError> {
        if session.settings.cells.is_empty() {
            return Err(CliError::Refused("CELLS_FILE is unset: it lists the cells".to_owned()));
        }
        let stop = session.stop;
        let done = match self {
            Self::List { format } => stop.race(list::run(session, *format)).await,
            Self::Add { cell, citus } => stop.race(add(session, cell, *citus)).await,
            Self::Migrate(options) => stop.race(migrate(session, options)).await,
            Self::Verify => return stop.race(verify::run(session)).await.transpose(),
            // These undo what they have begun.
            Self::Move(tenant) => tenant.run(session).await.transpose(),
            Self::Drain(drain) => drain.run(session).await.transpose(),
        };
        Ok(done.transpose()?.map(|()| true))
    }

    /// Whether the command itself checks which cell each database is, and prepares its schema.
    pub fn prepares_databases(&self) -> bool {
        matches!(self, Self::Add { .. } | Self::Migrate(_))
    }
}

async fn add(session: &Session<'_>, id: &str, citus: bool) -> Result<(), CliError> {
    let (home, added) = (home(session), cell(session, id)?);
    let progress = Progress::default();
    let mut home_connection = start::reach(&home.database, &progress).await?;
    match cells::state(&mut home_connection).await? {
        State::Cell(_) => {
            start::check_identity(&mut home_connection, &home.id, false).await?;
            progress.step("the migrations", start::prepare_schema(&mut home_connection, false)).await?;
        }
        // The database that was alone until now, or an empty one, becomes the home cell.
        State::Empty | State::Unassigned => {
            for other in &session.settings.cells[1..] {
                check_no_home(other, &home.id).await?;
            }
            progress.step("the migrations", start::prepare_schema(&mut home_connection, true)).await?;
            cells::found(&mut home_connection, &home.id).await?;
        }
    }
    if added.id == home.id {
        return session.print(format!("{id} is the home cell")).await;
    }
    let schema = added.citus_schema.as_deref();
    if citus != schema.is_some() {
        let text = "the option --citus and `citus = true` in CELLS_FILE belong together";
        return Err(CliError::Refused(text.to_owned()));
    }
    let mut connection = start::reach(&added.database, &progress).await?;
    match cells::state(&mut connection).await? {
        State::Unassigned if !cells::is_empty(&mut connection).await? => {
            return Err(CliError::Refused(format!("the database of {id} has data: a cell begins empty")));
        }
        State::Cell(_) => {
            let deployment = start::check_identity(&mut home_connection, &home.id, false).await?;
            start::check_cell(&mut connection, &added.id, deployment.as_deref()).await?;
            // The home cell may be restored from before, and give the number of the cell to another one.
            if !cells::list(&mut home_connection).await?.iter().any(|cell| cell.id == added.id) {
                let text = format!("the database of {id} is a cell that the home cell does not know");
                return Err(CliError::Refused(text));
            }
        }
        State::Empty | State::Unassigned => {}
    }
    if let Some(schema) = schema {
        check_citus(&mut connection).await?;
        if !citus::dialect(&mut connection).await?.is_citus() && !cells::is_empty(&mut connection).await? {
            return Err(CliError::Refused(format!("{id} has data: only an empty cell can be distributed by Citus")));
        }
        citus::create_schema(&mut connection, schema).await?;
    }
    progress.step("the migrations", start::prepare_schema(&mut connection, true)).await?;
    let cell = cells::add(&mut home_connection, &mut connection, &added.id, schema).await?;
    session.print(format!("{id} is the cell number {}", cell.number)).await
}

/// Fails unless the database is that of a coordinator of Citus which distributes schemas.
async fn check_citus(connection: &mut PgConnection) -> Result<(), CliError> {
    let oldest = citus::VERSION_MIN;
    match citus::major_version(connection).await? {
        Some(version) if version >= oldest => Ok(()),
        Some(version) => {
            Err(CliError::Refused(format!("the database has Citus {version}; {oldest} or newer is needed")))
        }
        None => Err(CliError::Refused("the database has no extension citus".to_owned())),
    }
}

/// Fails if a database other than the first of CELLS_FILE is a cell or has data. With another order of the file, an empty
/// database would become a second home cell, which knows no API key.
async fn check_no_home(other: &CellSettings, home: &CellId) -> Result<(), CliError> {
    let mut connection = match connect(other).await {
        // It is to be created later.
        Err(StoreError::Database(sqlx::Error::Database(error))) if error.code().as_deref() == Some("3D000") => {
            return Ok(());
        }
        connected => connected?,
    };
    let found = match cells::state(&mut connection).await? {
        State::Cell(own) => format!("is the cell {}", own.cell),
        State::Unassigned if !cells::is_empty(&mut connection).await? => "has data".to_owned(),
        State::Empty | State::Unassigned => return Ok(()),
    };
    Err(CliError::Refused(format!(
        "the database of {} {found} already, and that of {home} is no cell: the first cell of CELLS_FILE must be the home cell, \
         with the database that is in use",
        other.id
    )))
}

async fn migrate(session: &Session<'_>, options: &Migrate) -> Result<(), CliError> {
    let is_only = session.settings.cells.len() == 1;
    let mut deployment = None;
    // The home cell is the first.
    for (index, cell) in session.settings.cells.iter().enumerate() {
        let progress = Progress::default();
        let mut connection = start::reach(&cell.database, &progress).await?;
        if index == 0 {
            deployment = start::check_identity(&mut connection, &cell.id, is_only).await?;
        } else {
            start::check_cell(&mut connection, &cell.id, deployment.as_deref()).await?;
        }
        start::check_dialect(&mut connection, &cell.id, cell.dialect()).await?;
        progress.step("the migrations", start::prepare_schema(&mut connection, true)).await?;
        if cell.dialect().is_citus() && options.grants {
            session.print(format!("{}: --grants does not apply to a schema on Citus", cell.id)).await?;
        } else {
            options.grant(&mut connection).await?;
        }
        session.print(format!("{}: the schema is up to date", cell.id)).await?;
    }
    Ok(())
}
