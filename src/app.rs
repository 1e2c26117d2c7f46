//! Builds all parts from the settings, starts them, and stops them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info};

use crate::api;
use crate::api::http::admission::Admission;
use crate::api::http::current_router::CurrentRouter;
use crate::api::http::rate_limit::RateLimiter;
use crate::api::request::known_keys::KnownKeys;
use crate::api::request::starting;
use crate::api::state::{ApiParts, HOME};
use crate::cell::availability::Availability;
use crate::cell::watcher::Watcher;
use crate::cell::{Cell, CellDatabase, CellJobs};
use crate::clock::Clock;
use crate::domain::cell::{CellId, Dialect};
use crate::history::History;
use crate::jobs::sample_history::HistorySampler;
use crate::jobs::watch_runtime_config::RuntimeConfigWatcher;
use crate::jobs::webhooks::sender::{Egress, Names, Sender};
use crate::progress::Progress;
use crate::query::coalescer::Coalescer;
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::Settings;
use crate::start::{StartError, check_dialect, check_identity, look, prepare_schema, reach};
use crate::store::address::Address;
use crate::store::{runtime_config, server, webhook_secrets};
use crate::telemetry::traces;

/// How long a stop waits for running requests and for the commands that they queued.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a stop waits for the jobs, and then for the connections of the pool to close and the spans to be exported.
const JOBS_LIMIT: Duration = Duration::from_secs(2);
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Webhooks whose secrets are decrypted at the start.
const SECRETS_SAMPLED: i64 = 1000;

/// The open port. It answers that the service is starting until the service has started. Dropping it closes the port.
pub struct Entrance {
    address: SocketAddr,
    router: CurrentRouter,
    admission: Admission,
    progress: Progress,
    stop_serving: DropGuard,
    serving: JoinHandle<bool>,
}

impl Entrance {
    pub async fn open(settings: &Settings) -> Result<Self, StartError> {
        let address = SocketAddr::new(settings.host, settings.port);
        let listener = TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
        let address = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
        let progress = Progress::default();
        let router = CurrentRouter::new(starting::router(progress.clone(), &settings.api.cors_allowed_origins));
        let admission = Admission::new(settings.http_limits);
        let stop = CancellationToken::new();
        let serving = api::http::server::serve(listener, router.clone(), admission.clone(), DRAIN_LIMIT, stop.clone());
        Ok(Self {
            address,
            router,
            admission,
            progress,
            stop_serving: stop.drop_guard(),
            serving: tokio::spawn(serving),
        })
    }

    /// Steps recorded here are shown by the readiness check.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

/// A running service.
pub struct App {
    pub address: SocketAddr,
    pub cells: Vec<CellJobs>,
    pub config_watcher: RuntimeConfigWatcher,
    pub history_sampler: HistorySampler,
    pub runtime_config: SharedRuntimeConfig,
    draining: CancellationToken,
    grace: Duration,
    stop_serving: DropGuard,
    serving: JoinHandle<bool>,
    jobs: JoinSet<()>,
    stop_jobs: CancellationToken,
    lanes: JoinSet<()>,
}

impl App {
    /// Starts the service behind its open port. `clock` is set from the database's clock; tests keep a clone to move
    /// it. A drain begins when `draining` is cancelled.
    pub async fn start(
        entrance: Entrance,
        settings: &Settings,
        options: PgConnectOptions,
        clock: Clock,
        draining: CancellationToken,
    ) -> Result<Self, StartError> {
        let Entrance { address, router: current_router, admission, progress, stop_serving, serving } = entrance;
        let mut connection = progress.step("the database", reach(&options, &progress)).await?;
        let home = settings.cells.first().map_or(CellId::from_stored("home".to_owned()), |home| home.id.clone());
        let deployment = match settings.cells.as_slice() {
            [home, others @ ..] => {
                let checked = check_identity(&mut connection, &home.id, others.is_empty());
                progress.step("the home cell", checked).await?
            }
            [] => None,
        };
        let migrated = prepare_schema(&mut connection, settings.migrate_on_start);
        progress.step("the migrations", migrated).await?;
        check_dialect(&mut connection, &home, Dialect::PostgreSql).await?;
        let read = look(runtime_config::read(&mut connection));
        let config = SharedRuntimeConfig::new(progress.step("the limits", read).await?);
        // The clock must be set before any request is served.
        progress.step("the database's clock", look(server::measure_clock(&mut connection, &clock))).await?;
        let secrets = look(webhook_secrets::sample(&mut connection, SECRETS_SAMPLED));
        let secrets = progress.step("the secrets of webhooks", secrets).await?;
        drop(connection);
        let sender = Sender::new(Egress {
            allow_private: settings.api.webhook_allow_private,
            names: Names::System,
            proxy: settings.webhook_proxy.clone(),
        });
        let mut lanes = JoinSet::new();
        let stop_jobs = CancellationToken::new();
        let mut jobs = JoinSet::new();
        let mut cells = Vec::new();
        for database in databases(settings, &options, clock) {
            let watcher = Watcher::of(&database, deployment.clone(), settings.migrate_on_start);
            let cell = Cell::start(database, settings, config.clone(), sender.clone(), &mut lanes);
            if settings.cells.len() > 1 {
                jobs.spawn(watcher.run(stop_jobs.clone(), cell.jobs.clone()));
            } else {
                cell.jobs.start(&mut jobs, &stop_jobs);
            }
            cells.push(cell);
        }
        let home: &Cell<_> = &cells[HOME];
        home.jobs.dispatcher.secrets.check(&secrets, settings.api.require_api_key);
        let queues: Vec<_> = cells.iter().map(|cell| cell.committer.queue_gauge()).collect();
        let history_sampler = HistorySampler { history: History::default(), clock: home.clock.clone() };
        let queue_depth = move || queues.iter().map(|depth| depth()).sum();
        jobs.spawn(history_sampler.clone().run(queue_depth, stop_jobs.clone()));
        let config_watcher =
            RuntimeConfigWatcher::new(options, config.clone(), home.health.clone(), home.clock.clone());
        jobs.spawn(config_watcher.clone().run(stop_jobs.clone()));
        let limiter = settings.api.rate_limit.then(|| Arc::new(RateLimiter::default()));
        let cell_jobs = cells.iter().map(|cell| cell.jobs.clone()).collect();
        let parts = ApiParts {
            settings: settings.api.clone(),
            known_keys: KnownKeys::new(
                settings.api.home_outage_max,
                home.reader.clone(),
                home.clock.clone(),
                home.health.clone(),
                config.clone(),
                limiter.clone(),
            ),
            cell_indexes: cells.iter().map(|cell| cell.id.clone()).zip(0..).collect(),
            cells,
            runtime_config: config.clone(),
            config_watcher: config_watcher.clone(),
            draining: draining.clone(),
            admission,
            limiter,
            key_limiter: RateLimiter::default(),
            history: history_sampler.history.clone(),
            metrics: Coalescer::new(1),
            started: Instant::now(),
        };
        current_router.replace(api::router(parts.into()));
        info!(host = %address.ip(), port = address.port(), "server started");
        let grace = settings.shutdown_grace;
        Ok(Self {
            address,
            cells: cell_jobs,
            config_watcher,
            history_sampler,
            runtime_config: config,
            draining,
            grace,
            stop_serving,
            serving,
            jobs,
            stop_jobs,
            lanes,
        })
    }

    /// Serves until a drain begins or a background task ends unexpectedly. Then stops the parts in order: HTTP, the
    /// lanes with the commands in their queues, the jobs, the pool. Each has a time limit. Returns true if all went
    /// well and in time.
    pub async fn run(mut self) -> bool {
        let mut is_well = tokio::select! {
            // `biased` checks the drain first: after a very early signal the lanes may have ended already, which is no
            // failure.
            biased;
            () = self.draining.cancelled() => true,
            _ = self.jobs.join_next() => false,
            _ = self.lanes.join_next() => false,
        };
        if is_well {
            tokio::time::sleep(self.grace).await;
        } else {
            error!("a background task died");
            self.draining.cancel();
        }
        drop(self.stop_serving);
        let latest = Instant::now() + DRAIN_LIMIT;
        // `server::serve` ends within the same limit.
        let is_drained = self.serving.await.unwrap_or_else(|_| {
            is_well = false;
            true
        });
        // The router held all senders of the lanes, so the lanes end when their queues are empty. A write whose client
        // disconnected may still wait there until its deadline.
        let are_committed = is_drained && timeout_at(latest, join_all(&mut self.lanes, &mut is_well)).await.is_ok();
        if !are_committed {
            error!(limitMs = DRAIN_LIMIT.as_millis() as u64, "forced exit after drain timeout");
            self.lanes.abort_all();
            is_well = false;
        }
        self.stop_jobs.cancel();
        if timeout(JOBS_LIMIT, join_all(&mut self.jobs, &mut is_well)).await.is_err() {
            error!(limitMs = JOBS_LIMIT.as_millis() as u64, "a background task did not stop in time");
            self.jobs.abort_all();
            is_well = false;
        }
        let pools = futures_util::future::join_all(self.cells.iter().map(|cell| cell.pool().close(CLOSE_LIMIT)));
        tokio::join!(pools, traces::stop(CLOSE_LIMIT));
        is_well
    }
}

/// The databases of the cells, the home cell first. `home` is connected, and `clock` is its clock.
fn databases(settings: &Settings, home: &PgConnectOptions, clock: Clock) -> Vec<CellDatabase> {
    let id = settings.cells.first().map_or(CellId::from_stored("home".to_owned()), |cell| cell.id.clone());
    let weight = settings.cells.first().map_or(1, |cell| cell.weight);
    let home = CellDatabase {
        weight,
        address: home.clone().into(),
        clock: clock.clone(),
        availability: Availability::available(id),
    };
    let others = settings.cells.iter().skip(1).map(|cell| CellDatabase {
        weight: cell.weight,
        address: Address::new(cell.database.clone().application_name("agentpay-billing"), cell.dialect()),
        clock: clock.of_another_database(),
        availability: Availability::starting(cell.id.clone()),
    });
    std::iter::once(home).chain(others).collect()
}

/// Waits until all tasks have ended. Clears `is_well` if one of them panicked.
async fn join_all(tasks: &mut JoinSet<()>, is_well: &mut bool) {
    while let Some(ended) = tasks.join_next().await {
        *is_well &= ended.is_ok();
    }
}
