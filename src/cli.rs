//! The command line: serve, migrate, keys, verify.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::app::{self, App, Database, StartError};
use crate::clock::Clock;
use crate::command::{Answer, Command, Committer, Request};
use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;
use crate::live_limits::LiveLimits;
use crate::settings::{Settings, SettingsError};
use crate::shutdown::{self, Signals};
use crate::store::{StoreError, api_keys, audit, limits, server};
use crate::telemetry;

/// Exactly-once usage metering and settlement for machine-to-machine payments.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve requests (the default).
    Serve,
    /// Apply all pending migrations.
    Migrate,
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Keys(Keys),
    /// Check over the whole database that every pair and every bill adds up. Exit code 1 if something does not.
    Verify,
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Make a key, for a new tenant unless --tenant names one. The key is shown this once.
    Create {
        #[arg(long)]
        label: String,
        #[arg(long)]
        tenant: Option<String>,
    },
    /// List live keys by prefix.
    List,
    /// Revoke the key with this prefix.
    Revoke { prefix: String },
}

/// Why a command ended early. One line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Refused(String),
}

impl Cli {
    /// Runs the command. False: exit code 1.
    pub async fn run(self) -> Result<bool, CliError> {
        let settings = Settings::read(|name| std::env::var(name).ok(), std::io::stdout().is_terminal())?;
        let action = self.action.unwrap_or(Action::Serve);
        if matches!(action, Action::Serve) {
            return serve(&settings).await;
        }
        let database = Database::open_beside(&settings).await?;
        let outcome = execute(&action, &settings, &database).await;
        database.close().await;
        outcome
    }
}

async fn serve(settings: &Settings) -> Result<bool, CliError> {
    telemetry::start(settings);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let signals = Signals::listen()?;
    let database = Database::open(settings).await?;
    let app = match App::start(settings, database.options.clone(), Clock::default()).await {
        Ok(app) => app,
        Err(error) => {
            database.close().await;
            return Err(error.into());
        }
    };
    tokio::spawn(shutdown::watch(signals, app.draining()));
    let is_well = app.run().await;
    database.close().await;
    Ok(is_well)
}

async fn execute(action: &Action, settings: &Settings, database: &Database) -> Result<bool, CliError> {
    let mut connection = app::reach(&database.options).await?;
    let migrates = match action {
        Action::Migrate => true,
        Action::Serve | Action::Keys(Keys::Create { .. }) => settings.migrate_on_start,
        // Who only looks changes nothing.
        Action::Keys(Keys::List | Keys::Revoke { .. }) | Action::Verify => false,
    };
    app::prepare_schema(&mut connection, migrates).await?;
    match action {
        Action::Serve => Ok(true),
        Action::Migrate => {
            println!("the schema is up to date");
            Ok(true)
        }
        Action::Verify => verify(&mut connection).await,
        Action::Keys(Keys::List) => list_keys(&mut connection).await,
        Action::Keys(Keys::Create { label, tenant }) => {
            let length = label.encode_utf16().count();
            if !(1..=64).contains(&length) || label.trim().is_empty() {
                return Err(CliError::Refused("label must be a non-empty string up to 64 chars".to_owned()));
            }
            let command = Command::CreateApiKey { label: label.clone(), tenant_id: tenant.clone() };
            submit(settings, database, &mut connection, command).await
        }
        Action::Keys(Keys::Revoke { prefix }) => {
            let command = Command::RevokeApiKey { prefix: prefix.clone() };
            submit(settings, database, &mut connection, command).await
        }
    }
}

/// Goes the way of every write: through a committer.
async fn submit(
    settings: &Settings,
    database: &Database,
    connection: &mut PgConnection,
    command: Command,
) -> Result<bool, CliError> {
    let live = LiveLimits::new(limits::read(connection).await?);
    let (committer, mut lanes): (Committer, JoinSet<()>) =
        Committer::start(&settings.committer, database.options.clone(), Clock::default(), live);
    let request = Request {
        tenant: Tenant::public(),
        keyed: None,
        method: "POST",
        path: "/api/v1/api-keys".to_owned(),
        request_id: Uuid::new_v4().to_string(),
        deadline: Instant::now() + Duration::from_secs(30),
        command,
    };
    let answer = committer.submit(request).await;
    drop(committer);
    while lanes.join_next().await.is_some() {}
    match answer {
        Answer::Fresh(reply) | Answer::Replayed(reply) => {
            if let Some(body) = reply.body {
                println!("{}", String::from_utf8_lossy(&body));
            }
            Ok(true)
        }
        Answer::Refused(refusal) => Err(CliError::Refused(refusal.to_string())),
    }
}

async fn list_keys(connection: &mut PgConnection) -> Result<bool, CliError> {
    const PAGE: i64 = 1000;
    let mut start = api_keys::Start::Offset(0);
    loop {
        let rows = api_keys::list(connection, &start, PAGE).await?;
        for row in &rows {
            println!("{}\t{}\t{}", row.prefix, row.tenant, row.label.escape_debug());
        }
        let Some(last) = rows.last().filter(|_| rows.len() as i64 == PAGE) else { return Ok(true) };
        start = api_keys::Start::After { created_at: Timestamp::from(last.created_at), prefix: last.prefix.clone() };
    }
}

async fn verify(connection: &mut PgConnection) -> Result<bool, CliError> {
    let mut snapshot = server::begin_snapshot(connection).await?;
    let mut findings = 0_u64;
    let mut report = |finding: String| {
        findings += 1;
        println!("{finding}");
    };
    let pairs = audit::pairs(&mut snapshot, &mut report).await?;
    audit::settlements(&mut snapshot, &mut report).await?;
    audit::totals(&mut snapshot, &mut report).await?;
    audit::lists(&mut snapshot, &mut report).await?;
    if findings == 0 {
        println!("{pairs} pairs add up");
    }
    Ok(findings == 0)
}
