//! Builds every part from the settings, starts them, and stops them in order.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::api;
use crate::api::rate_limit::RateLimiter;
use crate::api::reads::Reads;
use crate::api::state::{ApiParts, KnownKeys};
use crate::clock::Clock;
use crate::command::Committer;
use crate::jobs::delivery::{Names, Sender};
use crate::jobs::dispatcher::Dispatcher;
use crate::jobs::follow_controls::Follower;
use crate::jobs::janitor::{Janitor, LastRun};
use crate::live_limits::LiveLimits;
use crate::local_postgres::{LocalPostgres, LocalPostgresError};
use crate::settings::Settings;
use crate::store::idempotency::OldestExpiry;
use crate::store::{StoreError, limits, migrations, server};

/// How long a start waits for the database.
const REACH_LIMIT: Duration = Duration::from_secs(30);
/// How long a stop waits for running requests.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a read waits for a connection.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(2);
/// How long a connection may have been idle and still be used without asking whether it works.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// Why the service did not start. One line, without secrets.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{address} cannot be listened on: {error}")]
    Listen { address: SocketAddr, error: std::io::Error },
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
    #[error(transparent)]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error(transparent)]
    LocalPostgres(#[from] LocalPostgresError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A database to work with, and the server that has to be stopped with us if it is our own.
pub struct Database {
    pub options: PgConnectOptions,
    pub local: Option<LocalPostgres>,
}

impl Database {
    /// For a service, which has its private PostgreSQL to itself.
    pub async fn open(settings: &Settings) -> Result<Self, StartError> {
        if let Some(options) = &settings.database {
            return Ok(Self { options: options.clone().application_name("agentpay-billing"), local: None });
        }
        let local = LocalPostgres::start(&settings.data_dir, &[]).await?;
        Ok(Self { options: local.connect_options("agentpay"), local: Some(local) })
    }

    /// For a command, which uses the private PostgreSQL of a running service, or starts it for as long as it runs.
    pub async fn open_beside(settings: &Settings) -> Result<Self, StartError> {
        match Self::open(settings).await {
            Err(StartError::LocalPostgres(LocalPostgresError::InUse { .. })) => {
                Ok(Self { options: LocalPostgres::beside(&settings.data_dir).await?, local: None })
            }
            opened => opened,
        }
    }

    pub async fn close(self) {
        if let Some(local) = self.local
            && let Err(error) = local.stop().await
        {
            warn!(%error, "the private PostgreSQL did not stop");
        }
    }
}

/// Waits until the database answers, and checks that it is one we can work with.
pub async fn reach(options: &PgConnectOptions) -> Result<PgConnection, StartError> {
    let began = tokio::time::Instant::now();
    let unreachable = |error: String| StartError::Unreachable {
        host: options.get_host().to_owned(),
        database: options.get_database().unwrap_or_default().to_owned(),
        error: error.replace('\n', " "),
    };
    loop {
        let error = match tokio::time::timeout_at(began + REACH_LIMIT, options.connect()).await {
            Err(_) => return Err(unreachable("no answer within 30 s".to_owned())),
            Ok(Ok(mut connection)) => {
                let facts = server::facts(&mut connection).await?;
                if facts.major_version < server::VERSION_MIN {
                    return Err(StartError::TooOld { host: options.get_host().to_owned(), found: facts.major_version });
                }
                if facts.synchronous_commit == "off" {
                    warn!("synchronous_commit is off: a crash of the database can lose acknowledged writes");
                }
                return Ok(connection);
            }
            Ok(Err(error)) => error,
        };
        // A wrong password or a missing database does not heal by waiting.
        let is_refusal = matches!(&error, sqlx::Error::Database(refusal)
            if !refusal.code().is_some_and(|code| code.starts_with("57") || code.starts_with("53")));
        if is_refusal || began.elapsed() > REACH_LIMIT {
            return Err(unreachable(error.to_string()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Brings the schema up to date, or insists that it is. Writes nothing, and needs no right to, when it is.
pub async fn prepare_schema(connection: &mut PgConnection, migrate: bool) -> Result<(), StartError> {
    let difference = migrations::compare(connection).await?;
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
    if difference.pending.is_empty() {
        return Ok(());
    }
    if migrate {
        Ok(migrations::apply(connection).await?)
    } else {
        Err(StartError::Pending(difference.pending.join(", ")))
    }
}

/// A running service.
pub struct App {
    pub address: SocketAddr,
    pub janitor: Janitor,
    pub dispatcher: Dispatcher,
    pub limits: LiveLimits,
    draining: CancellationToken,
    stop_serving: CancellationToken,
    serving: tokio::task::JoinHandle<bool>,
    jobs: JoinSet<()>,
    stop_jobs: CancellationToken,
    lanes: JoinSet<()>,
    pool: PgPool,
}

impl App {
    /// Starts the service on a reachable database. `clock` is the wall clock; tests keep a clone to move it.
    pub async fn start(settings: &Settings, options: PgConnectOptions, clock: Clock) -> Result<Self, StartError> {
        let address = SocketAddr::new(settings.host, settings.port);
        let listener = TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
        let address = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
        let mut connection = reach(&options).await?;
        prepare_schema(&mut connection, settings.migrate_on_start).await?;
        let live = LiveLimits::new(limits::read(&mut connection).await?);
        drop(connection);
        let pool = PgPoolOptions::new()
            .max_connections(settings.pool_max)
            .acquire_timeout(ACQUIRE_LIMIT)
            // Asking every time whether a connection still works would cost each read a round trip.
            .test_before_acquire(false)
            .before_acquire(|connection, usage| {
                let is_fresh = usage.idle_for < TRUSTED_IDLE;
                Box::pin(async move { Ok(is_fresh || connection.ping().await.is_ok()) })
            })
            .after_connect(|connection, _| Box::pin(server::set_up_for_reads(connection)))
            .connect_lazy_with(options.clone());
        let (committer, lanes) = Committer::start(&settings.committer, options.clone(), clock.clone(), live.clone());
        let janitor = Janitor {
            settings: settings.janitor.clone(),
            pool: pool.clone(),
            clock: clock.clone(),
            limits: live.clone(),
            last_run: LastRun::default(),
        };
        let stop_jobs = CancellationToken::new();
        let mut jobs = JoinSet::new();
        jobs.spawn(janitor.clone().run(stop_jobs.clone()));
        let sender = Sender::new(settings.api.webhook_allow_private, Names::System);
        let dispatcher = Dispatcher::new(pool.clone(), clock.clone(), sender, committer.new_deliveries());
        jobs.spawn(dispatcher.clone().run(stop_jobs.clone()));
        jobs.spawn(Follower::new(options, live.clone()).run(stop_jobs.clone()));
        let draining = CancellationToken::new();
        let parts = ApiParts {
            settings: settings.api.clone(),
            pool: pool.clone(),
            committer,
            clock,
            limits: live.clone(),
            draining: draining.clone(),
            known_keys: KnownKeys::default(),
            export_turns: api::state::export_turns(settings.pool_max),
            dispatcher: dispatcher.clone(),
            limiter: settings.api.rate_limit.then(RateLimiter::default),
            janitor_ran: janitor.last_run.clone(),
            oldest_expiry: OldestExpiry::default(),
            started: Instant::now(),
            reads: Reads::default(),
        };
        let router = api::router(parts.into());
        let stop_serving = CancellationToken::new();
        let (drain, grace, stop) = (draining.clone(), settings.shutdown_grace, stop_serving.clone());
        tokio::spawn(async move {
            drain.cancelled().await;
            tokio::time::sleep(grace).await;
            stop.cancel();
        });
        let stop = stop_serving.clone();
        let serving = tokio::spawn(api::server::serve(listener, router, settings.silence, DRAIN_LIMIT, stop));
        info!(host = %address.ip(), port = address.port(), "server started");
        let limits = live;
        Ok(Self { address, janitor, dispatcher, limits, draining, stop_serving, serving, jobs, stop_jobs, lanes, pool })
    }

    /// Cancel it to begin a drain.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Serves until a drain begins or a background task dies, and then stops: HTTP first, then the lanes, which commit
    /// what they were sent, then the rest. True if everything went well and in time.
    pub async fn run(mut self) -> bool {
        let mut is_well = tokio::select! {
            // First: after a very early signal the lanes may have ended by now, as they should.
            biased;
            () = self.draining.cancelled() => true,
            _ = self.jobs.join_next() => false,
            _ = self.lanes.join_next() => false,
        };
        if !is_well {
            error!("a background task died");
            self.draining.cancel();
        }
        self.stop_serving.cancelled().await;
        let latest = Instant::now() + DRAIN_LIMIT;
        let forced = || {
            error!(timeoutMs = DRAIN_LIMIT.as_millis() as u64, "forced exit after drain timeout");
            false
        };
        match self.serving.await {
            Ok(true) => {}
            Ok(false) => return forced(),
            Err(_) => is_well = false,
        }
        // All senders went with the router, so the lanes end when their queues are empty. A write whose client hung up
        // may still wait there, for its own deadline.
        while let Ok(Some(lane)) = timeout_at(latest, self.lanes.join_next()).await {
            is_well &= lane.is_ok();
        }
        if !self.lanes.is_empty() {
            return forced();
        }
        self.stop_jobs.cancel();
        while let Some(job) = self.jobs.join_next().await {
            is_well &= job.is_ok();
        }
        self.pool.close().await;
        is_well
    }
}
