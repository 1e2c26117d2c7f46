//! What a command works with: the database, standard output and signals. Reads go through a pool of one connection, and
//! writes through a [`Writer`](super::writer::Writer).

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::domain::caller::Tenant;
use crate::domain::runtime_config::RuntimeConfig;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::settings::cells::CellSettings;
use crate::shutdown::Stop;
use crate::start;
use crate::store::address::Address;
use crate::store::pool::Pool;
use crate::store::{StoreError, citus, runtime_config, server, tenant_moves};

use super::error::CliError;
use super::output::Output;
use super::scope;

/// How long a command waits for one read.
pub const READ_LIMIT: Duration = Duration::from_secs(30);

pub struct Session<'a> {
    pub settings: &'a Settings,
    /// Where the database is.
    pub address: Address,
    pub pool: Pool,
    /// Set by the database's.
    pub clock: Clock,
    pub output: Output,
    pub stop: &'a Stop,
}

impl<'a> Session<'a> {
    pub fn new(settings: &'a Settings, address: Address, clock: Clock, output: Output, stop: &'a Stop) -> Self {
        let pool = Pool::new(address.clone(), 1, READ_LIMIT);
        Self { settings, address, pool, clock, output, stop }
    }

    pub async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.pool.run(Instant::now() + READ_LIMIT, work).await
    }

    /// Reads data of a tenant, if one is given. Fails unless it lives in this cell also after that.
    pub async fn read_of<T>(
        &self,
        tenant: Option<&Tenant>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, CliError> {
        let read = async |connection: &mut PgConnection| {
            let found = work(connection).await?;
            let is_complete = match tenant {
                Some(tenant) => tenant_moves::is_complete(connection, tenant).await?,
                None => true,
            };
            Ok((found, is_complete))
        };
        let (found, is_complete) = self.read(read).await?;
        if let Some(tenant) = tenant {
            scope::check_complete(tenant, is_complete)?;
        }
        Ok(found)
    }

    /// The runtime configuration. That of the home cell applies to all cells.
    pub async fn runtime_config(&self) -> Result<RuntimeConfig, StoreError> {
        let read = async |connection: &mut PgConnection| runtime_config::read(connection).await;
        match self.settings.cells.first() {
            Some(home) => Pool::new(home.database.clone(), 1, READ_LIMIT).run(Instant::now() + READ_LIMIT, read).await,
            None => self.read(read).await,
        }
    }

    /// The session of the cell where a tenant lives.
    pub async fn of_tenant(&self, tenant: &Tenant) -> Result<Self, CliError> {
        if self.settings.cells.len() < 2 {
            return Ok(Self::new(
                self.settings,
                self.address.clone(),
                self.clock.clone(),
                self.output.clone(),
                self.stop,
            ));
        }
        self.of_cell(scope::cell_of(tenant, &self.settings.cells).await?).await
    }

    /// The session of one of several cells.
    pub async fn of_cell(&self, cell: &'a CellSettings) -> Result<Self, CliError> {
        let mut connection = start::reach(&cell.database, &Progress::default()).await?;
        let deployment = start::deployment(&self.settings.cells[0]).await?;
        start::check_cell(&mut connection, &cell.id, deployment.as_deref()).await?;
        start::prepare_schema(&mut connection, false).await?;
        let (mut connection, address) = start::look(citus::locate(connection, &cell.database, READ_LIMIT)).await?;
        let clock = Clock::default();
        start::look(server::measure_clock(&mut connection, &clock)).await?;
        Ok(Self::new(self.settings, address, clock, self.output.clone(), self.stop))
    }

    /// Writes one line to standard output.
    pub async fn print(&self, line: String) -> Result<(), CliError> {
        Ok(self.output.line(line).await?)
    }
}
