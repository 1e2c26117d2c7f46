//! The private PostgreSQL, used if DATABASE_URL is unset, and by the integration tests. It stores its data in DATA_DIR,
//! listens only on a Unix socket in a directory that other users cannot enter, and belongs to one service at a time,
//! which restarts it when it exits. If the service is killed, the server keeps running, and the next service takes it
//! over. Commands may connect while the service runs.

mod cluster;
mod directories;
mod error;
#[cfg(feature = "fetch-postgres")]
mod fetch;
mod find;
mod run_as;
mod start_program;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateDatabase;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{Connection, Postgres};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::metrics;
use crate::store::server;

use cluster::{Cluster, PORT, SUPERUSER, ServerState};
pub use error::LocalPostgresError;
use find::Binaries;
use run_as::ServerUser;
use start_program::StartProgram;

/// The database that every start creates if it does not exist.
const DATABASE: &str = "agentpay";

/// How long a server may not respond at all. While it responds that it is starting, for example during crash recovery,
/// there is no limit.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// How long a stopping server may wait for its connections before they are terminated.
const STOPPING_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two log lines about the same wait.
const LOG_PAUSE: Duration = Duration::from_secs(5);

/// Pause between two checks of a running server.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// The pause before a restart grows from the minimum to the maximum, and is reset after the server has run for a while.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// How long a command waits for the running service to start the server.
const BESIDE_LIMIT: Duration = Duration::from_secs(30);

/// Pause between two checks of a server that is starting or stopping.
const POLL_MS: u64 = 50;

/// A server without a socket for this many checks has lost it, and is restarted.
const POLLS_WITHOUT_SOCKET_MAX: u32 = 200;

/// A private PostgreSQL server.
///
/// Dropping it releases DATA_DIR but leaves the server running, as a crash would. [`LocalPostgres::stop`] ends both.
#[derive(Debug)]
pub struct LocalPostgres {
    cluster: Cluster,
    // Keeps the lock. The operating system releases it when the process ends.
    _lock: File,
}

impl LocalPostgres {
    /// Starts the PostgreSQL of `data_dir`, or takes over the one that a killed service left running, and waits until
    /// it responds.
    ///
    /// `settings` are additional server settings, such as `("fsync", "off")`. A server that is taken over keeps its
    /// own.
    pub async fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Result<LocalPostgres, LocalPostgresError> {
        let postgres = Self::open(data_dir, settings).await?;
        postgres.run().await?;
        Ok(postgres)
    }

    /// Locks `data_dir` and finds the programs. Starts nothing.
    pub async fn open(data_dir: &Path, settings: &[(&str, &str)]) -> Result<LocalPostgres, LocalPostgresError> {
        let user = ServerUser::choose(&Cluster::data(&data_dir.join("postgres"))).await?;
        let (data_dir, lock) = directories::open_data_dir(data_dir, user.we_are_root())?;
        let home = directories::open_home(&data_dir, &user).await?;
        let socket_dir = directories::open_socket_dir(&home, &user).await?;
        let binaries = find_binaries(&data_dir, &home, &user).await?;
        let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let cluster = Cluster { home, socket_dir, binaries, user, settings, start_program: StartProgram::default() };
        Ok(LocalPostgres { cluster, _lock: lock })
    }

    /// Starts the server of an opened directory, and waits until it responds. If this is cancelled,
    /// [`LocalPostgres::stop_fast`] undoes it.
    pub async fn run(&self) -> Result<(), LocalPostgresError> {
        let data = Cluster::data(&self.cluster.home);
        let state = if data.join("PG_VERSION").exists() { "existing" } else { "new" };
        info!(path = %data.display(), version = %self.cluster.binaries, data = state, "the private PostgreSQL keeps its data here");
        self.cluster.initialise_once().await?;
        self.start_again().await?;
        if let Err(error) = self.create_database_once().await {
            // The first error is reported.
            let _ = self.stop_fast().await;
            return Err(LocalPostgresError::Database { database: DATABASE.to_owned(), reason: one_line(&error) });
        }
        Ok(())
    }

    /// Whether `data_dir` contains data. If that cannot be determined, the answer is yes, and the start reports the
    /// error.
    pub fn has_data(data_dir: &Path) -> bool {
        Cluster::data(&data_dir.join("postgres")).join("PG_VERSION").try_exists().unwrap_or(true)
    }

    /// Options for the database of a PostgreSQL that another process starts and stops in `data_dir`. The server may not
    /// respond yet.
    pub async fn beside(data_dir: &Path) -> Result<PgConnectOptions, LocalPostgresError> {
        let home = directories::home(data_dir)?;
        let began = Instant::now();
        loop {
            let reason = match Cluster::socket_dir_of(&home) {
                Ok(Some(socket_dir)) => return Ok(options(&socket_dir, DATABASE)),
                Ok(None) => "it has no socket yet".to_owned(),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > BESIDE_LIMIT {
                return Err(LocalPostgresError::NotStarted { data_dir: data_dir.to_owned(), reason });
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// Options to connect to `database` as the superuser.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        options(&self.cluster.socket_dir, database)
    }

    /// The URL of `database`, for psql, sqlx and sqlx-cli:
    /// `postgres://agentpay@localhost:5432/agentpay?host=%2F...&sslmode=disable`.
    pub fn url(&self, database: &str) -> String {
        let database = percent_encode(database.as_bytes(), NON_ALPHANUMERIC);
        let host = percent_encode(self.cluster.socket_dir.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
        format!("postgres://{SUPERUSER}@localhost:{PORT}/{database}?host={host}&sslmode=disable")
    }

    /// The directory of the server's socket.
    pub fn socket_dir(&self) -> &Path {
        &self.cluster.socket_dir
    }

    /// Stops the server, terminating its connections, and releases DATA_DIR.
    pub async fn stop(self) -> Result<(), LocalPostgresError> {
        self.stop_fast().await
    }

    /// Stops the server, terminating its connections, and keeps DATA_DIR locked.
    pub async fn stop_fast(&self) -> Result<(), LocalPostgresError> {
        self.cluster.halt("fast").await
    }

    /// Ends the server as a crash would, without waiting, for a process that ends at once.
    pub fn abort(&self) {
        self.cluster.abort();
    }

    /// Stops the server without a checkpoint. The next start recovers. For fault tests, and for a server that does not
    /// stop in time.
    pub async fn stop_immediately(&self) -> Result<(), LocalPostgresError> {
        self.cluster.halt("immediate").await
    }

    /// Restarts the server whenever it exits, while this is polled. If this is cancelled during a start,
    /// [`LocalPostgres::stop_fast`] undoes the start.
    pub async fn keep_running(&self) {
        let mut pause = RESTART_PAUSE_MIN;
        let mut began = Instant::now();
        loop {
            tokio::time::sleep(WATCH_PAUSE).await;
            if matches!(self.cluster.state().await, Ok(ServerState::Alive)) {
                self.cluster.limit_log().await;
                continue;
            }
            if began.elapsed() > STEADY_AFTER {
                pause = RESTART_PAUSE_MIN;
            }
            error!(pauseMs = pause.as_millis() as u64, "the private PostgreSQL ended: it is started again");
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RESTART_PAUSE_MAX);
                match self.start_again().await {
                    Ok(()) => break,
                    Err(error) => error!(%error, "the private PostgreSQL could not be started again"),
                }
            }
            began = Instant::now();
            metrics::local_postgres_restarted();
            warn!("the private PostgreSQL runs again");
        }
    }

    /// Starts the server unless it runs, and waits until it responds.
    pub async fn start_again(&self) -> Result<(), LocalPostgresError> {
        self.start_again_unless_silent(SILENCE_LIMIT).await
    }

    /// Like [`Self::start_again`], with another limit for a server that does not respond.
    ///
    /// Checks the server's state repeatedly, and acts on it.
    pub async fn start_again_unless_silent(&self, silence_limit: Duration) -> Result<(), LocalPostgresError> {
        let mut polls_without_socket = 0;
        let mut last_word = Instant::now();
        let mut last_line = Instant::now();
        let mut stopping_since = None;
        loop {
            let state = self.cluster.state().await?;
            if state != ServerState::Stopping {
                stopping_since = None;
            }
            match state {
                ServerState::Stopped => match self.cluster.launch().await {
                    // Temporary: child processes of a killed server hold its shared memory for a moment, or the pg_ctl
                    // of a killed service is still starting the server.
                    Err(LocalPostgresError::StartFailed { reason, .. }) if is_passing(&reason) => {}
                    Err(error) => return Err(error),
                    Ok(()) => last_word = Instant::now(),
                },
                ServerState::AliveElsewhere => self.cluster.halt("fast").await?,
                ServerState::Stopping => {
                    if stopping_since.get_or_insert_with(Instant::now).elapsed() > STOPPING_LIMIT {
                        self.cluster.halt("fast").await?;
                    }
                }
                ServerState::Ending => {}
                ServerState::Alive if polls_without_socket >= POLLS_WITHOUT_SOCKET_MAX => {
                    self.cluster.halt("fast").await?;
                    polls_without_socket = 0;
                }
                ServerState::Alive => match self.ask(silence_limit).await {
                    Ok(connections_max) if connections_max < self.cluster.connections_max() => {
                        // A killed service with another TMPDIR left it running. Nobody else uses it, because this
                        // process holds the lock on DATA_DIR.
                        self.cluster.halt("fast").await?;
                    }
                    Ok(_) => return Ok(()),
                    Err(sqlx::Error::Database(error)) => {
                        polls_without_socket = 0;
                        if !says_wait(&*error) {
                            let reason = error.message().replace('\n', " ");
                            return Err(LocalPostgresError::Refused { reason, log: self.cluster.log() });
                        }
                        last_word = Instant::now();
                        if last_line.elapsed() > LOG_PAUSE {
                            last_line = Instant::now();
                            info!(says = error.message(), "waiting for the private PostgreSQL");
                        }
                    }
                    Err(_) => polls_without_socket += 1,
                },
            }
            if last_word.elapsed() > silence_limit {
                return Err(LocalPostgresError::NotReady { limit_s: silence_limit.as_secs(), log: self.cluster.log() });
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// The server's `max_connections`, if it responds.
    async fn ask(&self, limit: Duration) -> Result<u32, sqlx::Error> {
        let asking = async {
            let mut connection = PgConnection::connect_with(&self.connect_options("postgres")).await?;
            let connections_max = server::connections_max(&mut connection).await?;
            // An error while closing does not matter.
            let _ = connection.close().await;
            Ok(connections_max)
        };
        tokio::time::timeout(limit, asking).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn create_database_once(&self) -> Result<(), sqlx::Error> {
        let url = self.url(DATABASE);
        if Postgres::database_exists(&url).await? { Ok(()) } else { Postgres::create_database(&url).await }
    }
}

fn options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    // Explicit, so that PG* variables of the environment have no effect.
    PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(PORT)
        .username(SUPERUSER)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

async fn find_binaries(data_dir: &Path, home: &Path, user: &ServerUser) -> Result<Binaries, LocalPostgresError> {
    let fetched: PathBuf = home.join("server");
    let version = std::fs::read_to_string(Cluster::data(home).join("PG_VERSION")).ok();
    let wanted_major = version.and_then(|version| version.trim().parse().ok());
    let found = find::newest(user, &fetched, data_dir, wanted_major).await;
    #[cfg(feature = "fetch-postgres")]
    if wanted_major.is_none() && matches!(found, Err(LocalPostgresError::NotFound { .. })) {
        fetch::fetch(&fetched, user).await?;
        return find::newest(user, &fetched, data_dir, wanted_major).await;
    }
    found
}

/// Whether the server reports that it is starting, recovering or too busy.
fn says_wait(error: &dyn DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some("57P03" | "57P01" | "57P02" | "53300"))
}

/// Whether the cause of a failed start may be temporary.
fn is_passing(reason: &str) -> bool {
    reason.contains("shared memory block") || reason.contains("lock file")
}

fn one_line(error: &sqlx::Error) -> String {
    error.to_string().replace('\n', " ")
}
