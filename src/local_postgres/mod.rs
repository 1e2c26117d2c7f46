//! The private local PostgreSQL used when DATABASE_URL is unset, and by the integration tests.
//! It lives in DATA_DIR, listens only on a Unix socket in a directory closed to other users, and belongs to one service
//! at a time. A service that was killed leaves it running; the next one takes it over, data and all. Commands may
//! connect beside the service.

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
use sqlx::migrate::MigrateDatabase;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{Connection, Postgres};

use cluster::{Cluster, PORT, SUPERUSER, ServerState};
pub use error::LocalPostgresError;
use find::Binaries;
use run_as::ServerUser;
use start_program::StartProgram;

/// The database every start makes sure of.
const DATABASE: &str = "agentpay";

/// The longest we wait for a server to answer: crash recovery after a kill takes its time.
const READY_LIMIT_S: u64 = 60;

/// The pause between two looks at a server that is starting or shutting down.
const POLL_MS: u64 = 50;

/// After so many looks in a row without a socket the server is taken to have lost it, and is restarted.
const POLLS_WITHOUT_SOCKET_MAX: u32 = 200;

/// A running PostgreSQL of our own.
///
/// Dropping it gives DATA_DIR free but leaves the server running, like a crash would; [`LocalPostgres::stop`] ends both.
#[derive(Debug)]
pub struct LocalPostgres {
    cluster: Cluster,
    // Held, not used: the operating system frees it with the process, however that ends.
    _lock: File,
}

impl LocalPostgres {
    /// Starts the PostgreSQL of `data_dir`, or takes over the one a killed service left running, and waits until it answers.
    ///
    /// `settings` are further server settings, such as `("fsync", "off")`; a server that is taken over keeps its own.
    pub async fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Result<LocalPostgres, LocalPostgresError> {
        let postgres = Self::open(data_dir, settings).await?;
        postgres.run().await?;
        Ok(postgres)
    }

    /// Takes `data_dir` and finds the programs, and starts nothing yet.
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

    /// Starts the server of an opened directory, and waits until it answers. A caller that gives this up half-way calls
    /// [`LocalPostgres::stop_fast`], which undoes what was begun.
    pub async fn run(&self) -> Result<(), LocalPostgresError> {
        self.cluster.initialise_once().await?;
        self.start_again().await?;
        if let Err(error) = self.create_database_once().await {
            // The first error is the one to report.
            let _ = self.stop_fast().await;
            return Err(LocalPostgresError::Database { database: DATABASE.to_owned(), reason: one_line(&error) });
        }
        Ok(())
    }

    /// How to connect to the database of the PostgreSQL that another process has started in `data_dir`, and will stop.
    /// It may not answer yet.
    pub async fn beside(data_dir: &Path) -> Result<PgConnectOptions, LocalPostgresError> {
        let user = ServerUser::choose(&Cluster::data(&data_dir.join("postgres"))).await?;
        let home = directories::find_home(data_dir)?;
        Ok(options(&directories::open_socket_dir(&home, &user).await?, DATABASE))
    }

    /// How to connect to `database` as the superuser.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        options(&self.cluster.socket_dir, database)
    }

    /// The same as a URL, for psql, sqlx and sqlx-cli: `postgres://agentpay@localhost:5432/agentpay?host=%2F...&sslmode=disable`.
    pub fn url(&self, database: &str) -> String {
        let database = percent_encode(database.as_bytes(), NON_ALPHANUMERIC);
        let host = percent_encode(self.cluster.socket_dir.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
        format!("postgres://{SUPERUSER}@localhost:{PORT}/{database}?host={host}&sslmode=disable")
    }

    /// The directory of the server's socket.
    pub fn socket_dir(&self) -> &Path {
        &self.cluster.socket_dir
    }

    /// Stops the server, ending its connections, and gives DATA_DIR free.
    pub async fn stop(self) -> Result<(), LocalPostgresError> {
        self.stop_fast().await
    }

    /// The same, and keeps DATA_DIR.
    pub async fn stop_fast(&self) -> Result<(), LocalPostgresError> {
        self.cluster.halt("fast").await
    }

    /// Has the server end like after a crash, and does not wait for that: for a process that ends at once.
    pub fn abort(&self) {
        self.cluster.abort();
    }

    /// Stops the server like a crash, without writing anything out; the next start recovers. For tests of faults, and for a
    /// server that does not stop in time.
    pub async fn stop_immediately(&self) -> Result<(), LocalPostgresError> {
        self.cluster.halt("immediate").await
    }

    /// Brings the server up if it is not, and waits until it answers.
    pub async fn start_again(&self) -> Result<(), LocalPostgresError> {
        let limit = Duration::from_secs(READY_LIMIT_S);
        match tokio::time::timeout(limit, self.bring_up()).await {
            Ok(result) => result,
            Err(_) => Err(LocalPostgresError::NotReady { limit_s: READY_LIMIT_S, log: self.cluster.log() }),
        }
    }

    /// Looks at the server again and again, and does what its state calls for, until it answers.
    async fn bring_up(&self) -> Result<(), LocalPostgresError> {
        let mut polls_without_socket = 0;
        loop {
            match self.cluster.state().await? {
                ServerState::Stopped => match self.cluster.launch().await {
                    // Children of a killed server hold its shared memory until they notice, a moment later; and the
                    // pg_ctl of a killed service may be starting the server at this very moment.
                    Err(LocalPostgresError::StartFailed { reason, .. }) if is_passing(&reason) => {}
                    other => other?,
                },
                ServerState::AliveElsewhere => self.cluster.halt("fast").await?,
                ServerState::Alive if polls_without_socket >= POLLS_WITHOUT_SOCKET_MAX => {
                    self.cluster.halt("fast").await?;
                    polls_without_socket = 0;
                }
                ServerState::Alive => {
                    match PgConnection::connect_with(&self.connect_options("postgres")).await {
                        Ok(connection) => {
                            // It answered, which is all we wanted; how the farewell goes does not matter.
                            let _ = connection.close().await;
                            return Ok(());
                        }
                        // It is starting, recovering or shutting down, and says so.
                        Err(sqlx::Error::Database(_)) => polls_without_socket = 0,
                        Err(_) => polls_without_socket += 1,
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    async fn create_database_once(&self) -> Result<(), sqlx::Error> {
        let url = self.url(DATABASE);
        if Postgres::database_exists(&url).await? { Ok(()) } else { Postgres::create_database(&url).await }
    }
}

fn options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    // Explicit where the PG* variables of our environment would otherwise decide.
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

/// Whether a failed start is worth another look at the server.
fn is_passing(reason: &str) -> bool {
    reason.contains("shared memory block") || reason.contains("lock file")
}

fn one_line(error: &sqlx::Error) -> String {
    error.to_string().replace('\n', " ")
}
