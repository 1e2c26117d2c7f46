//! The commands that create, list and revoke API keys.

use std::time::Duration;

use clap::Subcommand;
use serde::Deserialize;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::clock::Clock;
use crate::command::{Answer, Request, TransactionalCommand};
use crate::commit::Committer;
use crate::domain::audit_log::Origin;
use crate::domain::caller::Tenant;
use crate::full_callers::FullCallers;
use crate::job_health::JobHealth;
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::Settings;
use crate::shutdown::Stop;
use crate::store::pool::Pool;
use crate::store::{api_keys, runtime_config, server};

use super::error::CliError;
use super::output::Output;

/// Number of keys in one page of the list.
const PAGE: i64 = 1000;
/// Time limits of a command's reads and writes.
pub const READ_LIMIT: Duration = Duration::from_secs(30);
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// How long a running creation is waited for after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Create a key, for a new tenant unless --tenant names one. The key is shown only once.
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

/// What the commands about keys need.
pub struct KeyStore<'a> {
    pub settings: &'a Settings,
    pub options: &'a PgConnectOptions,
    pub pool: &'a Pool,
    pub output: &'a Output,
    pub stop: &'a Stop,
}

impl KeyStore<'_> {
    /// Creates a key and prints it. If it cannot be printed, it is revoked, because nobody knows it.
    pub async fn create(&mut self, label: &str, tenant: Option<&str>) -> Result<(), CliError> {
        let length = label.encode_utf16().count();
        if !(1..=64).contains(&length) || label.trim().is_empty() {
            return Err(CliError::Refused("label must be a non-empty string up to 64 chars".to_owned()));
        }
        let command =
            TransactionalCommand::CreateApiKey { label: label.to_owned(), tenant_id: tenant.map(str::to_owned) };
        let stop = self.stop.requested().clone();
        let stopped = async {
            stop.cancelled().await;
            sleep(STOP_LIMIT).await;
        };
        let created = tokio::select! {
            created = self.submit(command) => created?,
            () = stopped => {
                let text = "stopped before the database answered: `keys list` shows whether there is a key nobody knows";
                return Err(CliError::Refused(text.to_owned()));
            }
        };
        let body = String::from_utf8_lossy(&created).into_owned();
        let prefix = Created::prefix(&created);
        let shown = match self.stop.race(self.output.line(body)).await {
            Some(shown) => shown.map_err(|error| error.to_string()),
            None => Err("stopped by a signal".to_owned()),
        };
        let Err(reason) = shown else { return Ok(()) };
        let revoked =
            timeout(STOP_LIMIT, self.submit(TransactionalCommand::RevokeApiKey { prefix: prefix.clone() })).await;
        let text = match revoked {
            Ok(Ok(_)) => format!("the key could not be shown and is revoked again: {reason}"),
            _ => format!("the key {prefix} could not be shown ({reason}) and not be revoked either: revoke it by hand"),
        };
        Err(CliError::Refused(text))
    }

    pub async fn list(&mut self) -> Result<(), CliError> {
        let mut start = api_keys::Start::Offset(0);
        loop {
            let list = async |connection: &mut PgConnection| api_keys::list(connection, &start, PAGE).await;
            let rows = self.pool.run(Instant::now() + READ_LIMIT, list).await?;
            for (_, key) in &rows {
                self.output.line(format!("{}\t{}\t{}", key.prefix, key.tenant_id, key.label.escape_debug())).await?;
            }
            let Some((last, _)) = rows.last().filter(|_| rows.len() as i64 == PAGE) else { return Ok(()) };
            start = api_keys::Start::After(last.clone());
        }
    }

    pub async fn revoke(&mut self, prefix: &str) -> Result<(), CliError> {
        self.submit(TransactionalCommand::RevokeApiKey { prefix: prefix.to_owned() }).await.map(drop)
    }

    /// Executes a command through a committer, as every write. Returns the body of the response.
    async fn submit(&mut self, command: TransactionalCommand) -> Result<Vec<u8>, CliError> {
        let clock = Clock::default();
        let read = async |connection: &mut PgConnection| {
            server::measure_clock(connection, &clock).await?;
            runtime_config::read(connection).await
        };
        let config = SharedRuntimeConfig::new(self.pool.run(Instant::now() + READ_LIMIT, read).await?);
        let health = JobHealth::new(clock.clone());
        let (committer, mut lanes): (Committer, JoinSet<()>) = Committer::start(
            &self.settings.committer,
            self.options.clone(),
            clock,
            config,
            health,
            FullCallers::default(),
        );
        let request = Request {
            tenant: Tenant::public(),
            origin: Origin::CLI,
            keyed: None,
            method: "POST",
            path: "/api/v1/api-keys".to_owned(),
            request_id: Uuid::new_v4().to_string(),
            deadline: (Instant::now() + WRITE_LIMIT).into_std(),
            command: command.into(),
        };
        let answer = committer.submit(request).await;
        drop(committer);
        // The queues are empty.
        let _ = timeout(STOP_LIMIT, async { while lanes.join_next().await.is_some() {} }).await;
        match answer {
            Answer::Fresh(reply) | Answer::Replayed(reply) => {
                Ok(reply.body.map(|body| body.to_vec()).unwrap_or_default())
            }
            Answer::Refused(refusal) => Err(CliError::Refused(refusal.to_string())),
        }
    }
}

#[derive(Deserialize)]
struct Created {
    key: String,
}

impl Created {
    /// The prefix of the key in the response to its creation.
    fn prefix(body: &[u8]) -> String {
        let key = serde_json::from_slice(body).map(|created: Self| created.key).unwrap_or_default();
        key.chars().take(12).collect()
    }
}
