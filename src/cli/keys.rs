//! The commands that create, list and revoke API keys.

use std::time::Duration;

use clap::Subcommand;
use rand::rngs::StdRng;
use serde::Deserialize;
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};

use crate::cell::placement;
use crate::command::{Answer, TenantOfKey, TransactionalCommand};
use crate::domain::api_key::{ApiKeyInfo, KeyLimits, OVERLAP_SECONDS_DEFAULT, OVERLAP_SECONDS_MAX};
use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::identifiers;
use crate::domain::refusal::Refusal;
use crate::settings::cells::CellSettings;
use crate::start;
use crate::store::{api_keys, directory, tenants};

use super::error::CliError;
use super::scope;
use super::session::Session;
use super::table::{FormatOption, Table};
use super::writer::{Write, Writer};

/// Number of keys in one page of the list.
const PAGE: i64 = 1000;
/// How long a running creation is waited for after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long a cell is waited for that the operator did not name.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Create a key, for a new tenant unless --tenant names one. The key is shown only once. With several cells, a new tenant
    /// is created in that of --cell, or in the one with the fewest tenants for its weight.
    Create {
        #[arg(long)]
        label: String,
        #[arg(long)]
        tenant: Option<String>,
        /// That of `--cell`: where a new tenant is created.
        #[arg(skip)]
        cell: Option<String>,
    },
    /// List the live keys.
    List {
        #[command(flatten)]
        format: FormatOption,
    },
    /// Create a key that may do the same as the key with this prefix, which remains valid for a while. The new key is
    /// shown only once.
    Rotate {
        prefix: String,
        /// For how many seconds the old key remains valid.
        #[arg(long, default_value_t = OVERLAP_SECONDS_DEFAULT,
              value_parser = clap::value_parser!(i64).range(0..=OVERLAP_SECONDS_MAX))]
        overlap_seconds: i64,
    },
    /// Revoke the key with this prefix.
    Revoke { prefix: String },
}

impl Keys {
    /// None: a signal came first.
    pub async fn run(&self, session: &Session<'_>) -> Option<Result<(), CliError>> {
        let store = KeyStore(session);
        match self {
            // Handles the signal itself: a key is either shown or revoked.
            Self::Create { label, tenant, cell } => Some(store.create(label, tenant.as_deref(), cell.as_deref()).await),
            Self::Rotate { prefix, overlap_seconds } => {
                let (old, overlap_ms) = (prefix.clone(), overlap_seconds * 1000);
                let rotate = TransactionalCommand::RotateApiKey { prefix: old, overlap_ms, expires_at: None };
                Some(store.show_once(rotate, Some(prefix)).await)
            }
            Self::List { format } => session.stop.race(store.list(*format)).await,
            Self::Revoke { prefix } => session.stop.race(store.revoke(prefix)).await,
        }
    }
}

struct KeyStore<'a>(&'a Session<'a>);

impl KeyStore<'_> {
    async fn create(&self, label: &str, tenant: Option<&str>, cell: Option<&str>) -> Result<(), CliError> {
        let length = label.encode_utf16().count();
        if !(1..=64).contains(&length) || label.trim().is_empty() {
            return Err(CliError::Refused("label must be a non-empty string up to 64 chars".to_owned()));
        }
        let tenant = match tenant {
            Some(id) => self.existing(id, cell).await?,
            None => self.place(cell).await?,
        };
        let (label, limits) = (label.to_owned(), KeyLimits::default());
        let command = TransactionalCommand::CreateApiKey { label, tenant, limits };
        self.show_once(command, None).await
    }

    /// A tenant, which must live in the cell if one is named.
    async fn existing(&self, id: &str, cell: Option<&str>) -> Result<TenantOfKey, CliError> {
        let cells = &self.0.settings.cells;
        if let Some(named) = cell {
            scope::find(cells, named)?;
            let lives_in = &scope::cell_of(&Tenant::from_stored(id.to_owned()), cells).await?.id;
            if lives_in.as_str() != named {
                let refusal = Refusal::CellOfTenant { tenant: id.to_owned(), cell: lives_in.to_string() };
                return Err(CliError::Refused(refusal.to_string()));
            }
        }
        Ok(TenantOfKey::Existing(id.to_owned()))
    }

    /// Creates a tenant in the named cell, or in that with the fewest tenants for its weight, as the service does. The home cell
    /// creates its tenants together with their keys.
    async fn place(&self, named: Option<&str>) -> Result<TenantOfKey, CliError> {
        let cells = &self.0.settings.cells;
        let named = named.map(|id| scope::find(cells, id)).transpose()?;
        let [home, _, ..] = cells.as_slice() else { return Ok(TenantOfKey::New) };
        let read = async |connection: &mut PgConnection| directory::accepting(connection).await;
        let accepting = self.0.read(read).await?;
        let mut usable: Vec<&CellSettings> =
            cells.iter().filter(|cell| named.is_none_or(|named| named.id == cell.id)).collect();
        let id = loop {
            let weights = usable.iter().map(|cell| (&cell.id, cell.weight));
            let Some(id) = placement::least_filled(weights, &accepting) else {
                let text = named.map_or("no cell that answers accepts new tenants".to_owned(), |named| {
                    Refusal::CellClosed(named.id.to_string()).to_string()
                });
                return Err(CliError::Refused(text));
            };
            if *id == home.id {
                return Ok(TenantOfKey::New);
            }
            if named.is_some() || answers(scope::find(cells, id.as_str())?).await {
                break id;
            }
            usable.retain(|cell| cell.id != *id);
        };
        let tenant = Tenant::from_stored(identifiers::draw(&mut rand::make_rng::<StdRng>(), "tnt_", 16));
        let session = self.0.of_cell(scope::find(cells, id.as_str())?).await?;
        let now = session.clock.now();
        let insert =
            async |connection: &mut PgConnection| tenants::insert(connection, &tenant, Residence::Here, now).await;
        session.read(insert).await?;
        Ok(TenantOfKey::Placed { tenant, cell: id.clone() })
    }

    /// Executes a command that creates a key, and prints the key. If it cannot be printed, it is revoked, because nobody
    /// knows it. The key that it replaces, if any, is then valid for as long as before.
    async fn show_once(&self, command: TransactionalCommand, replaced: Option<&str>) -> Result<(), CliError> {
        let stop = self.0.stop.requested().clone();
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
        let shown = match self.0.stop.race(self.0.output.line(body)).await {
            Some(shown) => shown.map_err(|error| error.to_string()),
            None => Err("stopped by a signal".to_owned()),
        };
        let Err(reason) = shown else { return Ok(()) };
        let undo = match replaced {
            None => TransactionalCommand::RevokeApiKey { prefix: prefix.clone() },
            Some(old) => {
                TransactionalCommand::CancelKeyRotation { prefix: old.to_owned(), replacement: prefix.clone() }
            }
        };
        let revoked = timeout(STOP_LIMIT, self.submit(undo)).await;
        let text = match revoked {
            Ok(Ok(_)) => format!("the key could not be shown and is revoked again: {reason}"),
            _ => format!("the key {prefix} could not be shown ({reason}) and not be revoked either: revoke it by hand"),
        };
        Err(CliError::Refused(text))
    }

    async fn list(&self, format: FormatOption) -> Result<(), CliError> {
        let mut start = api_keys::Start::Offset(0);
        let mut keys = Vec::new();
        loop {
            let list = async |connection: &mut PgConnection| api_keys::list(connection, &start, PAGE).await;
            let rows = self.0.read(list).await?;
            let is_last = (rows.len() as i64) < PAGE;
            if let Some((last, _)) = rows.last() {
                start = api_keys::Start::After(last.clone());
            }
            keys.extend(rows.into_iter().map(|(_, key)| key));
            if is_last {
                return format.print(self.0, &keys, |keys| to_table(keys)).await;
            }
        }
    }

    async fn revoke(&self, prefix: &str) -> Result<(), CliError> {
        self.submit(TransactionalCommand::RevokeApiKey { prefix: prefix.to_owned() }).await.map(drop)
    }

    /// Executes a command. Returns the body of the response.
    async fn submit(&self, command: TransactionalCommand) -> Result<Vec<u8>, CliError> {
        let writer = Writer::start(self.0, &self.0.settings.committer).await?;
        let (path, command) = ("/api/v1/api-keys".to_owned(), command.into());
        let write = Write { tenant: Tenant::public(), keyed: None, method: "POST", path, command };
        let answer = writer.submit(write).await;
        writer.close().await;
        match answer {
            Answer::Fresh(reply) | Answer::Replayed(reply) => {
                Ok(reply.body.map(|body| body.to_vec()).unwrap_or_default())
            }
            Answer::Refused(refusal) => Err(CliError::Refused(refusal.to_string())),
        }
    }
}

/// Whether the database of a cell can be reached.
async fn answers(cell: &CellSettings) -> bool {
    matches!(timeout(CONNECT_LIMIT, start::connect(&cell.database)).await, Ok(Ok(_)))
}

fn to_table(keys: &[ApiKeyInfo]) -> Table {
    let mut table = Table::with_header(["PREFIX", "TENANT", "CREATED", "LABEL"]);
    for key in keys {
        table.add([&key.prefix, &key.tenant_id, &key.created_at.to_rfc_3339(), &key.label]);
    }
    table
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
