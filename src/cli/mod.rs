//! The command line. Each command has a file of its own.

mod audit_log;
mod cells;
mod config;
mod deliveries;
mod error;
mod export_file;
mod health;
mod idempotency;
mod import;
mod keys;
mod manual;
mod migrate;
mod moment;
mod output;
mod progress_bar;
mod prune;
mod scope;
mod secrets;
mod session;
mod settlements;
mod table;
mod verify;
mod writer;

use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sqlx::PgConnection;

use crate::app::{App, Entrance};
use crate::clock::Clock;
use crate::domain::cell::CellId;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::shutdown::Stop;
use crate::start::{self, Database};
use crate::store::address::Address;
use crate::store::{citus, server};
use crate::telemetry;

use audit_log::Audit;
use cells::Cells;
use config::Config;
use deliveries::Deliveries;
pub use error::CliError;
use idempotency::Idempotency;
use import::Import;
use keys::Keys;
use manual::{Completions, Man};
use migrate::Migrate;
use output::{Output, OutputError};
use prune::Prune;
use scope::Scope;
use secrets::Secrets;
use session::Session;
use settlements::Settlements;
use verify::Verify;

/// Exactly-once usage metering and settlement for machine-to-machine payments.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    action: Option<Action>,
    /// The cell of CELLS_FILE whose data the command reads, by default that of the tenant which the command names, or in which
    /// `keys create` creates a tenant.
    #[arg(long = "cell", id = "cell-of-command", global = true, value_name = "ID")]
    cell: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve requests (the default).
    Serve,
    /// Apply all pending migrations.
    Migrate(Migrate),
    /// Create, list and revoke API keys.
    #[command(subcommand)]
    Keys(Keys),
    /// Look up idempotency records.
    #[command(subcommand)]
    Idempotency(Idempotency),
    /// Export the ledger.
    #[command(subcommand)]
    Settlements(Settlements),
    /// Export who changed what.
    #[command(subcommand)]
    Audit(Audit),
    /// List deliveries to webhooks, and send them again.
    #[command(subcommand)]
    Deliveries(Deliveries),
    /// Delete what has expired or is over a cap, as the service does from time to time, or show what that would be.
    Prune(Prune),
    /// List, add, check and empty cells, and move tenants between them.
    #[command(subcommand)]
    Cells(Cells),
    /// Show the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Import keys, services and outstanding usage from exports of the original backend.
    ///
    /// Reads and checks all files first, and imports nothing if one of them breaks a rule. Run the same command again after an
    /// interruption, within a year: what is imported already is not imported twice. Exit code 1 if something was not imported;
    /// the result names it and the reason, and a repetition tries it again.
    Import(Import),
    /// Check the sums of the whole database. Exit code 1 if any is wrong.
    Verify(Verify),
    /// Encrypt the secrets of webhooks, and check that they can be decrypted.
    #[command(subcommand)]
    Secrets(Secrets),
    /// Ask the service that runs on HOST and PORT whether it is ready. Exit code 1 if it is not, or does not answer.
    Health,
    /// Print the completions of a shell.
    #[command(hide = true)]
    Completions(Completions),
    /// Print the manual page.
    #[command(hide = true)]
    Man(Man),
}

impl Action {
    fn scope(&self) -> Scope<'_> {
        match self {
            Self::Keys(Keys::Create { .. }) => Scope::NewTenant,
            Self::Idempotency(idempotency) => idempotency.scope(),
            Self::Settlements(settlements) => settlements.scope(),
            Self::Deliveries(deliveries) => deliveries.scope(),
            Self::Audit(_) | Self::Prune(_) | Self::Verify(_) | Self::Secrets(_) => Scope::Cell,
            _ => Scope::Home,
        }
    }
}

/// The exit code of a process.
type Code = u8;

const SUCCESS: Code = 0;
const FAILURE: Code = 1;
/// Added to the number of the signal that ended a command before it was complete.
const SIGNALLED: Code = 128;

impl Cli {
    /// Runs the command. Returns the exit code.
    pub async fn run(self) -> Result<Code, CliError> {
        let stop = Stop::listen()?;
        let mut action = self.action.unwrap_or(Action::Serve);
        if let Action::Keys(Keys::Create { cell, .. }) = &mut action {
            cell.clone_from(&self.cell);
        }
        match &action {
            Action::Completions(completions) => return finish(completions.run::<Self>(), &stop).await,
            Action::Man(man) => return finish(man.run::<Self>(), &stop).await,
            _ => {}
        }
        let mut settings = Settings::read(|name| std::env::var(name).ok(), io::stdout().is_terminal())?;
        let choosing = action.scope().cell(self.cell.as_deref(), &settings.cells);
        let Some(chosen) = stop.race(choosing).await else { return Ok(interrupted(&stop)) };
        let cell = chosen?.cloned();
        settings.database = cell.as_ref().map(|cell| cell.database.clone()).or(settings.database);
        match &action {
            Action::Serve => serve(&settings, &stop).await,
            Action::Config(config) if !config.needs_database() => {
                finish(config.run_without_database(&settings), &stop).await
            }
            Action::Health => finish(check_health(&settings), &stop).await,
            action => run_command(action, &settings, cell.as_ref().map(|cell| &cell.id), &stop).await,
        }
    }
}

/// Writes one line to standard error. Waits at most `limit` for the reader.
pub fn print_error(line: &str, limit: Duration) {
    let (done, written) = mpsc::channel();
    let line = format!("{line}\n");
    let write = move || {
        // If this fails, there is nowhere to report it.
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = written.recv_timeout(limit);
    }
}

async fn serve(settings: &Settings, stop: &Stop) -> Result<Code, CliError> {
    telemetry::start(settings)?;
    if let Some(settings) = &settings.traces {
        telemetry::traces::start(settings).map_err(|error| CliError::Refused(error.to_string()))?;
    }
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let entrance = Entrance::open(settings).await?;
    let progress = entrance.progress();
    let opening = progress.step("a PostgreSQL to start", Database::open(settings, stop));
    let Some(opened) = stop.race(opening).await else { return Ok(SUCCESS) };
    let database = opened?;
    let starting = async {
        progress.step("the private PostgreSQL", database.run()).await?;
        let options = database.options.clone();
        App::start(entrance, settings, options, Clock::default(), stop.requested().clone()).await
    };
    let is_well = match stop.race(starting).await {
        Some(Ok(app)) => run_to_the_end(app, &database, stop).await,
        Some(Err(error)) => {
            database.close().await;
            return Err(error.into());
        }
        // A stop during startup is not a failure.
        None => true,
    };
    let is_closed = database.close().await;
    Ok(if is_well && is_closed { SUCCESS } else { FAILURE })
}

/// Serves, and restarts the database when it exits, until a stop is requested. If the database exits after that, it
/// received the same signal.
async fn run_to_the_end(app: App, database: &Database, stop: &Stop) -> bool {
    let mut serving = pin!(app.run());
    tokio::select! {
        is_well = serving.as_mut() => is_well,
        _ = stop.race(database.keep_running()) => serving.await,
    }
}

async fn check_health(settings: &Settings) -> Result<(), CliError> {
    let ready = health::check(settings.host, settings.port).await?;
    Ok(Output::standard()?.line(ready).await?)
}

/// Runs a command that needs no database.
async fn finish(command: impl Future<Output = Result<(), CliError>>, stop: &Stop) -> Result<Code, CliError> {
    match stop.race(command).await {
        None => Ok(interrupted(stop)),
        Some(Err(CliError::Output(OutputError::Closed))) => Ok(SUCCESS),
        Some(done) => done.map(|()| SUCCESS),
    }
}

/// Runs a command that needs the database, which is that of `cell` with CELLS_FILE.
async fn run_command(
    action: &Action,
    settings: &Settings,
    cell: Option<&CellId>,
    stop: &Stop,
) -> Result<Code, CliError> {
    if io::stderr().is_terminal() {
        telemetry::start_for_command()?;
    }
    let Some(opened) = stop.race(Database::open_beside(settings, stop)).await else { return Ok(interrupted(stop)) };
    let database = opened?;
    let executed = execute(action, settings, cell, &database, stop).await;
    database.close().await;
    match executed {
        // A closed pipe is not an error: `head` has read all it needs.
        Err(CliError::Output(OutputError::Closed)) => Ok(SUCCESS),
        Ok(None) => Ok(interrupted(stop)),
        Ok(Some(code)) => Ok(code),
        Err(error) => Err(error),
    }
}

fn interrupted(stop: &Stop) -> Code {
    stop.signal().map_or(FAILURE, |signal| SIGNALLED + signal.number)
}

/// Returns `None` if a signal ended the command.
async fn execute(
    action: &Action,
    settings: &Settings,
    cell: Option<&CellId>,
    database: &Database,
    stop: &Stop,
) -> Result<Option<Code>, CliError> {
    let output = Output::standard()?;
    let clock = Clock::default();
    let Some(prepared) = stop.race(prepare(action, settings, cell, database, &clock)).await else { return Ok(None) };
    let (mut connection, address) = prepared?;
    let session = Session::new(settings, address, clock, output, stop);
    let done = match action {
        Action::Serve | Action::Health | Action::Completions(_) | Action::Man(_) => Some(Ok(())),
        Action::Config(config) => stop.race(config.run(&session)).await,
        Action::Migrate(migrate) => stop.race(migrate.run(&mut connection, &session)).await,
        Action::Import(import) => return coded(stop.race(import.run(&session)).await),
        Action::Verify(verify) => return coded(stop.race(verify.run(&mut connection, &session)).await),
        Action::Secrets(secrets) => return coded(stop.race(secrets.run(&session)).await),
        Action::Cells(cells) => return coded(cells.run(&session).await.transpose()),
        Action::Keys(keys) => keys.run(&session).await,
        Action::Idempotency(idempotency) => stop.race(idempotency.run(&session)).await,
        Action::Deliveries(deliveries) => stop.race(deliveries.run(&session)).await,
        Action::Prune(prune) => stop.race(prune.run(&session)).await,
        Action::Audit(audit) => stop.race(audit.run(&session)).await,
        Action::Settlements(settlements) => stop.race(settlements.run(&session)).await,
    };
    Ok(done.transpose()?.map(|()| SUCCESS))
}

/// The exit code of a command that says whether all is well.
fn coded(done: Option<Result<bool, CliError>>) -> Result<Option<Code>, CliError> {
    Ok(done.transpose()?.map(|is_well| if is_well { SUCCESS } else { FAILURE }))
}

/// Returns a connection to a database whose schema is up to date, and its address. Sets `clock` by the database's clock. Changes
/// nothing if the database is not that of `cell`.
async fn prepare(
    action: &Action,
    settings: &Settings,
    cell: Option<&CellId>,
    database: &Database,
    clock: &Clock,
) -> Result<(PgConnection, Address), CliError> {
    let progress = Progress::default();
    progress.step("the private PostgreSQL", database.run()).await?;
    let mut connection = progress.step("the database", start::reach(&database.options, &progress)).await?;
    if matches!(action, Action::Cells(cells) if cells.prepares_databases()) {
        start::look(server::measure_clock(&mut connection, clock)).await?;
        return Ok((connection, database.options.clone().into()));
    }
    let lists_cells = matches!(action, Action::Cells(Cells::List { .. }));
    if let Some(cell) = cell.filter(|_| !lists_cells) {
        let home = &settings.cells[0];
        let checked = async {
            start::check_identity(&mut connection, cell, settings.cells.len() == 1).await?;
            if *cell == home.id {
                return Ok(());
            }
            start::check_cell(&mut connection, cell, start::deployment(home).await?.as_deref()).await
        };
        progress.step("the cell", checked).await?;
    }
    let migrates = match action {
        Action::Migrate(_) => true,
        Action::Serve | Action::Keys(Keys::Create { .. }) | Action::Import(_) => settings.migrate_on_start,
        // The other commands never migrate.
        _ => false,
    };
    progress.step("the migrations", start::prepare_schema(&mut connection, migrates)).await?;
    let (mut connection, address) =
        start::look(citus::locate(connection, &database.options, session::READ_LIMIT)).await?;
    start::look(server::measure_clock(&mut connection, clock)).await?;
    Ok((connection, address))
}
