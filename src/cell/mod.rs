//! One cell: a database with the whole schema, and the parts of this process that work with it. A tenant lives in one
//! cell, and a request uses only the cell of its tenant. Cells share nothing but the runtime configuration.

pub mod availability;
pub mod follower;
pub mod gather;
pub mod placement;
pub mod watcher;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::commit::Committer;
use crate::domain::cell::CellId;
use crate::full_callers::FullCallers;
use crate::job_health::JobHealth;
use crate::jobs::janitor::{Janitor, LastRun};
use crate::jobs::verifier::{self, Verifier};
use crate::jobs::webhooks::dispatcher::Dispatcher;
use crate::jobs::webhooks::sender::Sender;
use crate::metrics::CellCounters;
use crate::query::exports::ExportTurns;
use crate::query::{PolledReads, Reader};
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::Settings;
use crate::store::address::Address;
use crate::store::pool::Pool;
use crate::store::retention::OldestExpiry;

use availability::Availability;

/// The parts of a cell that requests use. `R` is a rendered page of events. When the cell is dropped, the lanes empty
/// their queues and end.
pub struct Cell<R> {
    pub id: CellId,
    /// Share of the new tenants that the cell gets.
    pub weight: u32,
    pub availability: Availability,
    pub reader: Reader,
    pub polled: PolledReads<R>,
    pub committer: Committer,
    /// Shows the time of the cell's database.
    pub clock: Clock,
    pub export_turns: Arc<ExportTurns>,
    pub health: JobHealth,
    pub full_callers: FullCallers,
    /// Expiry of the oldest expired record that is not deleted yet.
    pub oldest_expiry: OldestExpiry,
    pub jobs: CellJobs,
}

/// The background jobs of a cell.
#[derive(Clone, Debug)]
pub struct CellJobs {
    pub janitor: Janitor,
    pub verifier: Verifier,
    pub dispatcher: Dispatcher,
}

/// The database of a cell.
pub struct CellDatabase {
    pub weight: u32,
    pub address: Address,
    pub clock: Clock,
    pub availability: Availability,
}

impl<R> Cell<R> {
    /// Starts the lanes, in `lanes`. They connect when they are used. The jobs are not started.
    pub fn start(
        database: CellDatabase,
        settings: &Settings,
        runtime_config: SharedRuntimeConfig,
        sender: Sender,
        lanes: &mut JoinSet<()>,
    ) -> Self {
        let CellDatabase { weight, address, clock, availability } = database;
        let several = settings.cells.len() > 1;
        let counters = if several { CellCounters::of(availability.cell().as_str()) } else { CellCounters::default() };
        let health = JobHealth::of_cell(clock.clone(), counters);
        let pool = Pool::new(address.clone(), settings.pool_max as usize, settings.api.request_timeout);
        let full_callers = FullCallers::default();
        let committer = Committer::start(
            &settings.committer,
            address,
            clock.clone(),
            runtime_config.clone(),
            health.clone(),
            full_callers.clone(),
            lanes,
        );
        let janitor = Janitor {
            settings: settings.janitor.clone(),
            pool: pool.clone(),
            clock: clock.clone(),
            runtime_config,
            last_run: LastRun::default(),
            health: health.clone(),
            full: full_callers.clone(),
            cursors: Arc::default(),
        };
        let verifier = Verifier {
            interval: settings.verify_interval,
            step_limit: verifier::STEP_LIMIT,
            pool: pool.clone(),
            health: health.clone(),
        };
        let (new, keyring) = (committer.new_deliveries(), settings.committer.keyring.clone());
        let dispatcher = Dispatcher::new(pool.clone(), clock.clone(), sender, new, health.clone(), keyring);
        Self {
            id: availability.cell().clone(),
            weight,
            availability,
            reader: Reader::new(pool, settings.api.request_timeout),
            polled: PolledReads::default(),
            committer,
            clock,
            export_turns: ExportTurns::new(settings.pool_max),
            health,
            full_callers,
            oldest_expiry: OldestExpiry::default(),
            jobs: CellJobs { janitor, verifier, dispatcher },
        }
    }
}

impl CellJobs {
    /// Starts the jobs, in `tasks`. They end when `stop` is cancelled.
    pub fn start(&self, tasks: &mut JoinSet<()>, stop: &CancellationToken) {
        tasks.spawn(self.janitor.clone().run(stop.clone()));
        if !self.verifier.interval.is_zero() {
            tasks.spawn(self.verifier.clone().run(stop.clone()));
        }
        tasks.spawn(self.dispatcher.clone().run(stop.clone()));
    }

    /// The connections of the cell, except those of the lanes.
    pub fn pool(&self) -> &Pool {
        &self.janitor.pool
    }
}
