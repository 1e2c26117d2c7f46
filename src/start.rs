//! The first steps of a start: connects to a suitable database, and migrates it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{error, warn};

use crate::domain::cell::{CellId, Dialect};
use crate::local_postgres::{LocalPostgres, LocalPostgresError};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::settings::cells::CellSettings;
use crate::shutdown::Stop;
use crate::store::cells::{self, State};
use crate::store::{StoreError, citus, migrations, server};

/// How long a start tries to connect to the database.
const REACH_LIMIT: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long the private PostgreSQL may take to stop, and to stop immediately after that.
const LOCAL_STOP_LIMIT: Duration = Duration::from_secs(5);
const LOCAL_ABORT_LIMIT: Duration = Duration::from_secs(3);

/// Why the service did not start. Messages are one line, without secrets.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{address} cannot be listened on: {error}")]
    Listen { address: std::net::SocketAddr, error: std::io::Error },
    #[error("the database {database} on {host} cannot be reached: {error}")]
    Unreachable { host: String, database: String, error: String },
    #[error("the database on {host} is PostgreSQL {found}; {} or newer is needed", server::VERSION_MIN)]
    TooOld { host: String, found: i32 },
    #[error("pending migrations: {0}; run `agentpay-billing migrate`, or start the service with MIGRATE_ON_START=true")]
    Pending(String),
    #[error("the database has migrations this program does not know: {0}; run a newer program")]
    Unknown(String),
    #[error("the database was made with another text of these migrations: {0}; run the program that made it")]
    Changed(String),
    #[error(
        "migrations that were begun and did not end: {0}; undo by hand what they did, and delete their rows in _sqlx_migrations"
    )]
    Unfinished(String),
    #[error(
        "DATABASE_URL is unset and DATA_DIR {} holds no database: set DATABASE_URL or another DATA_DIR, or LOCAL_POSTGRES to \
         true to begin an empty one there",
        data_dir.display()
    )]
    NoPrivateDatabase { data_dir: PathBuf },
    #[error("the database of the cell {cell} in CELLS_FILE is that of the cell {found}")]
    OtherCell { cell: CellId, found: CellId },
    #[error("the database of the cell {0} in CELLS_FILE belongs to another home cell")]
    OtherDeployment(CellId),
    #[error("the database of the cell {0} in CELLS_FILE is no cell: run `agentpay-billing cells add {0}`")]
    NoCell(CellId),
    #[error(
        "the database of the cell {0} in CELLS_FILE is not distributed by Citus: run `agentpay-billing cells add --citus {0}` if the \
         cell is empty, or remove citus = true"
    )]
    NotDistributed(CellId),
    #[error(
        "the schema of the cell {0} is distributed by Citus: a cell other than the first can be, with citus = true in CELLS_FILE"
    )]
    Distributed(CellId),
    #[error(transparent)]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error(transparent)]
    LocalPostgres(#[from] LocalPostgresError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The database, and its server if that is private.
pub struct Database {
    pub options: PgConnectOptions,
    local: Option<Arc<LocalPostgres>>,
}

impl Database {
    /// Opens the database of a service, which owns its private PostgreSQL. [`Database::run`] starts the server.
    pub async fn open(settings: &Settings, stop: &Stop) -> Result<Self, StartError> {
        if let Some(options) = &settings.database {
            return Ok(Self { options: options.clone().application_name("agentpay-billing"), local: None });
        }
        let connections_max = settings.local_connections_max().to_string();
        let server_settings = [("max_connections", connections_max.as_str())];
        let local = Arc::new(LocalPostgres::open(&settings.data_dir, &server_settings).await?);
        let to_abort = local.clone();
        stop.on_abort(move || to_abort.abort());
        Ok(Self { options: local.connect_options("agentpay"), local: Some(local) })
    }

    /// Opens the database of a command. It uses the private PostgreSQL of a running service, or starts it while the
    /// command runs.
    pub async fn open_beside(settings: &Settings, stop: &Stop) -> Result<Self, StartError> {
        let begins_empty = settings.database.is_none() && !LocalPostgres::has_data(&settings.data_dir);
        if begins_empty && !settings.local_postgres {
            return Err(StartError::NoPrivateDatabase { data_dir: settings.data_dir.clone() });
        }
        match Self::open(settings, stop).await {
            Err(StartError::LocalPostgres(LocalPostgresError::InUse { .. })) => {
                Ok(Self { options: LocalPostgres::beside(&settings.data_dir).await?, local: None })
            }
            opened => opened,
        }
    }

    /// Starts the private PostgreSQL, if there is one. If this is cancelled, [`Database::close`] undoes it.
    pub async fn run(&self) -> Result<(), StartError> {
        match &self.local {
            Some(local) => Ok(local.run().await?),
            None => Ok(()),
        }
    }

    /// Restarts the private PostgreSQL when it exits, while this is polled.
    pub async fn keep_running(&self) {
        match &self.local {
            Some(local) => local.keep_running().await,
            None => std::future::pending().await,
        }
    }

    /// Stops the private PostgreSQL. Returns true if it stopped properly.
    pub async fn close(self) -> bool {
        let Some(local) = self.local else { return true };
        match timeout(LOCAL_STOP_LIMIT, local.stop_fast()).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error!(%error, "the private PostgreSQL did not stop"),
            Err(_) => {
                error!(limitMs = LOCAL_STOP_LIMIT.as_millis() as u64, "the private PostgreSQL did not stop in time");
            }
        }
        if timeout(LOCAL_ABORT_LIMIT, local.stop_immediately()).await.is_err() {
            local.abort();
        }
        false
    }
}

/// Waits until the database responds, and checks that it is suitable.
pub async fn reach(options: &PgConnectOptions, progress: &Progress) -> Result<PgConnection, StartError> {
    let deadline = Instant::now() + REACH_LIMIT;
    let mut last_error = None;
    let unreachable = |error: String| StartError::Unreachable {
        host: options.get_host().to_owned(),
        database: options.get_database().unwrap_or_default().to_owned(),
        error,
    };
    loop {
        match timeout_at(deadline, connect(options)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(StartError::Store(StoreError::Database(error)))) => {
                let text = describe(&error);
                if !may_heal(&error) {
                    return Err(unreachable(text));
                }
                progress.note_error(text.clone());
                last_error = Some(text);
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
        sleep_until(deadline.min(Instant::now() + RETRY_PAUSE)).await;
        if Instant::now() >= deadline {
            return Err(unreachable(last_error.unwrap_or(format!("no answer within {} s", REACH_LIMIT.as_secs()))));
        }
    }
}

/// Connects once, and checks that the server is suitable.
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StartError> {
    let mut connection = options.connect().await.map_err(StoreError::from)?;
    let facts = server::facts(&mut connection).await?;
    if facts.major_version < server::VERSION_MIN {
        return Err(StartError::TooOld { host: options.get_host().to_owned(), found: facts.major_version });
    }
    if facts.synchronous_commit == "off" {
        warn!("synchronous_commit is off: a crash of the database can lose acknowledged writes");
    }
    Ok(connection)
}

/// Whether waiting can help. An unknown host name may become known when the network of a container is ready. A wrong
/// password, a missing database or an invalid certificate is permanent.
fn may_heal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(refusal) => {
            refusal.code().is_some_and(|code| ["57", "53", "08"].iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => false,
        // The error of a failed TLS handshake.
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
        _ => true,
    }
}

/// The error as one line.
fn describe(error: &sqlx::Error) -> String {
    let text = error.to_string().replace('\n', " ");
    match error {
        sqlx::Error::Tls(_) => format!("{text}; see sslmode in DATABASE_URL"),
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            format!("TLS failed: {error}; see sslmode in DATABASE_URL")
        }
        _ => text,
    }
}

/// Runs a first read with a time limit, because the connection may not respond.
pub async fn look<T>(read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(REACH_LIMIT, read).await.unwrap_or(Err(StoreError::TimedOut))
}

/// Migrates the schema, or checks that it is up to date. If it is, nothing is written, and no right to write is needed.
pub async fn prepare_schema(connection: &mut PgConnection, migrate: bool) -> Result<(), StartError> {
    let difference = look(migrations::compare(connection)).await?;
    let list = |versions: &[i64]| versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !difference.unknown.is_empty() {
        return Err(StartError::Unknown(list(&difference.unknown)));
    }
    if !difference.unfinished.is_empty() {
        return Err(StartError::Unfinished(list(&difference.unfinished)));
    }
    if !difference.changed.is_empty() {
        return Err(StartError::Changed(difference.changed.join(", ")));
    }
    if !difference.expansions.is_empty() {
        warn!(
            migrations = list(&difference.expansions),
            "the schema is newer than this program, and compatible with it"
        );
    }
    if difference.pending.is_empty() {
        return Ok(());
    }
    if migrate {
        Ok(migrations::apply(connection).await?)
    } else {
        Err(StartError::Pending(difference.pending.join(", ")))
    }
}

/// Fails if the database is not that of `cell`. Must succeed before anything is changed in the database. The only cell may
/// have any database that is not another cell. Returns the deployment, which must be that of the home cell.
pub async fn check_identity(
    connection: &mut PgConnection,
    cell: &CellId,
    is_only: bool,
) -> Result<Option<String>, StartError> {
    match look(cells::state(connection)).await? {
        State::Cell(found) if found.cell == *cell => Ok(Some(found.deployment)),
        State::Cell(found) => Err(StartError::OtherCell { cell: cell.clone(), found: found.cell }),
        State::Empty | State::Unassigned if is_only => Ok(None),
        State::Empty | State::Unassigned => Err(StartError::NoCell(cell.clone())),
    }
}

/// Fails if the database is not that of `cell` in this deployment. Another home cell may have a cell with the same id.
pub async fn check_cell(
    connection: &mut PgConnection,
    cell: &CellId,
    deployment: Option<&str>,
) -> Result<(), StartError> {
    match check_identity(connection, cell, false).await? {
        found if found.as_deref() == deployment => Ok(()),
        _ => Err(StartError::OtherDeployment(cell.clone())),
    }
}

/// The deployment of the cells, as their home cell says. Commands that work with another cell read it first.
pub async fn deployment(home: &CellSettings) -> Result<Option<String>, StartError> {
    let mut connection = reach(&home.database, &Progress::default()).await?;
    check_identity(&mut connection, &home.id, false).await
}

/// Fails if Citus distributes the schema and the cell does not expect it, or the other way round.
pub async fn check_dialect(connection: &mut PgConnection, cell: &CellId, expected: Dialect) -> Result<(), StartError> {
    compare_dialects(cell, look(citus::dialect(connection)).await?, expected)
}

pub fn compare_dialects(cell: &CellId, found: Dialect, expected: Dialect) -> Result<(), StartError> {
    match found {
        found if found == expected => Ok(()),
        Dialect::Citus => Err(StartError::Distributed(cell.clone())),
        Dialect::PostgreSql => Err(StartError::NotDistributed(cell.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::may_heal;

    #[test]
    fn only_what_can_heal_is_waited_for() {
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::UnexpectedEof, io::ErrorKind::Other] {
            assert!(may_heal(&sqlx::Error::Io(kind.into())), "{kind}");
        }
        let certificate = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        for error in [
            sqlx::Error::Tls("server does not support TLS".into()),
            sqlx::Error::Io(io::Error::new(io::ErrorKind::InvalidData, certificate)),
            sqlx::Error::Configuration("no such file".into()),
        ] {
            assert!(!may_heal(&error), "{error}");
        }
    }
}
