//! Watches the database of one of several cells: opens the cell, measures its clock, and finds out whether it can be used.
//! A cell that cannot be opened when the process starts is tried again, while the other cells serve their tenants.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::cell::{CellId, Dialect};
use crate::start::{self, StartError};
use crate::store::pool::Pool;
use crate::store::{FaultKind, StoreError, cells, citus, server};

use super::availability::Availability;
use super::follower::Follower;
use super::{CellDatabase, CellJobs};

/// Pause between two checks. It bounds how long the time of the cell is wrong after the machine was suspended.
const PAUSE: Duration = Duration::from_secs(1);
/// Time limit of a check.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// Time limit of an attempt to open the cell. It may migrate the schema.
const OPEN_LIMIT: Duration = Duration::from_mins(10);
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Watcher {
    cell: CellId,
    /// Of the home cell.
    deployment: Option<String>,
    /// Of the coordinator, if the cell is on Citus.
    options: PgConnectOptions,
    /// A separate pool of one connection: reads that use up the other pool must not make the cell unavailable.
    pool: Pool,
    clock: Clock,
    availability: Availability,
    dialect: Dialect,
    /// Of a cell on Citus.
    follower: Option<Arc<Follower>>,
    migrate_on_start: bool,
}

impl Watcher {
    pub fn of(database: &CellDatabase, deployment: Option<String>, migrate_on_start: bool) -> Self {
        let CellDatabase { address, clock, availability, .. } = database;
        let pool = Pool::new(address.clone(), 1, CHECK_LIMIT);
        let cell = availability.cell().clone();
        let follower = address.dialect.is_citus().then(|| Arc::new(Follower::new(cell, address.clone())));
        let (clock, availability) = (clock.clone(), availability.clone());
        Self {
            cell: availability.cell().clone(),
            deployment,
            options: address.target().options.clone(),
            pool,
            clock,
            availability,
            dialect: address.dialect,
            follower,
            migrate_on_start,
        }
    }

    /// Opens the cell unless it is open, starts its jobs, and watches it until `stop` is cancelled. Panics if a job does.
    pub async fn run(self, stop: CancellationToken, jobs: CellJobs) {
        let is_open = self.availability.reason().is_none();
        if !is_open && stop.run_until_cancelled(self.open()).await.is_none() {
            return;
        }
        let mut tasks = JoinSet::new();
        jobs.start(&mut tasks, &stop);
        tasks.spawn(async move {
            stop.run_until_cancelled(self.watch()).await;
            self.pool.close(CLOSE_LIMIT).await;
        });
        tasks.join_all().await;
    }

    /// Returns when the cell can be used for the first time.
    async fn open(&self) {
        let since = Instant::now();
        loop {
            let opened = timeout(OPEN_LIMIT, self.try_to_open()).await;
            match opened.unwrap_or(Err(StoreError::TimedOut.into())) {
                Ok(()) => return self.availability.recover(),
                Err(error) => self.availability.fail(since, describe(&error)),
            }
            sleep(PAUSE).await;
        }
    }

    async fn try_to_open(&self) -> Result<(), StartError> {
        let connecting = timeout(CHECK_LIMIT, start::connect(&self.options)).await;
        let mut connection = connecting.unwrap_or(Err(StoreError::TimedOut.into()))?;
        start::check_cell(&mut connection, &self.cell, self.deployment.as_deref()).await?;
        start::check_dialect(&mut connection, &self.cell, self.dialect).await?;
        start::prepare_schema(&mut connection, self.migrate_on_start).await?;
        // The clock must be set before any request is served.
        start::look(server::measure_clock(&mut connection, &self.clock)).await?;
        if let Some(follower) = &self.follower {
            follower.follow().await;
        }
        Ok(())
    }

    async fn watch(&self) {
        let mut failing_since = None;
        loop {
            if let Some(follower) = &self.follower {
                follower.follow().await;
            }
            let began = Instant::now();
            let check = async |connection: &mut PgConnection| {
                server::check_writer(connection).await?;
                server::measure_clock(connection, &self.clock).await?;
                // The URL may lead to another server after a failover or a restore.
                let identity = cells::identity(connection).await?;
                // `cells add --citus` distributes an empty cell that may be in use.
                Ok((identity, citus::dialect(connection).await?))
            };
            let failure = match self.pool.run(began + CHECK_LIMIT, check).await {
                Ok((Some(found), dialect))
                    if found.cell == self.cell && Some(&found.deployment) == self.deployment.as_ref() =>
                {
                    start::compare_dialects(&self.cell, dialect, self.dialect).err().as_ref().map(describe)
                }
                Ok(_) => Some("its database is that of another cell".to_owned()),
                Err(error) => Some(reason(&error)),
            };
            match failure {
                None => {
                    failing_since = None;
                    self.availability.recover();
                }
                Some(reason) => self.availability.fail(*failing_since.get_or_insert(began), reason),
            }
            sleep(PAUSE).await;
        }
    }
}

/// Why the cell could not be opened, without host names.
fn describe(error: &StartError) -> String {
    match error {
        StartError::Store(error) => reason(error),
        StartError::TooOld { .. } | StartError::Unreachable { .. } => "its server is not suitable".to_owned(),
        other => other.to_string(),
    }
}

fn reason(error: &StoreError) -> String {
    match error {
        StoreError::ReadOnly => "the database is read-only".to_owned(),
        error if error.kind() == FaultKind::Unavailable && !error.is_refusal() => {
            "the database does not answer".to_owned()
        }
        error => error.cause(),
    }
}
