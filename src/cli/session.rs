//! What a command works with: the database, standard output and signals. Reads go through a pool of one connection, and
//! writes through a [`Writer`](super::writer::Writer).

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::settings::Settings;
use crate::shutdown::Stop;
use crate::store::StoreError;
use crate::store::pool::Pool;

use super::error::CliError;
use super::output::Output;

/// How long a command waits for one read.
pub const READ_LIMIT: Duration = Duration::from_secs(30);

pub struct Session<'a> {
    pub settings: &'a Settings,
    pub options: &'a PgConnectOptions,
    pub pool: Pool,
    /// Set by the database's.
    pub clock: Clock,
    pub output: Output,
    pub stop: &'a Stop,
}

impl<'a> Session<'a> {
    pub fn new(
        settings: &'a Settings,
        options: &'a PgConnectOptions,
        clock: Clock,
        output: Output,
        stop: &'a Stop,
    ) -> Self {
        let pool = Pool::new(options.clone(), 1, READ_LIMIT);
        Self { settings, options, pool, clock, output, stop }
    }

    pub async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.pool.run(Instant::now() + READ_LIMIT, work).await
    }

    /// Writes one line to standard output.
    pub async fn print(&self, line: String) -> Result<(), CliError> {
        Ok(self.output.line(line).await?)
    }
}
