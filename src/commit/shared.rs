//! State that all lanes share, and how a lane connects.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::domain::keyring::Keyring;
use crate::full_callers::FullCallers;
use crate::job_health::JobHealth;
use crate::runtime_config::SharedRuntimeConfig;
use crate::store::StoreError;
use crate::store::address::Address;
use crate::store::server::{self, Backend, Interrupt};

use super::attempt::LOCK_TIMEOUT;
use super::unpriced::UnpricedServices;

/// State that all lanes share.
pub struct Shared {
    pub address: Address,
    pub clock: Clock,
    pub runtime_config: SharedRuntimeConfig,
    pub batch_max: usize,
    pub ttl_ms: i64,
    pub require_registered_services: bool,
    pub unpriced: UnpricedServices,
    pub statement_limit: Duration,
    pub deliveries: Arc<Notify>,
    pub health: JobHealth,
    pub full: FullCallers,
    pub keyring: Keyring,
}

/// The connection of a lane.
pub struct LaneConnection {
    pub connection: PgConnection,
    /// The server process of this connection, so that it can be interrupted.
    pub backend: Backend,
    /// That of the [`Address`] that it was made for.
    pub generation: u64,
}

impl Shared {
    pub async fn connect(&self, limit: Duration) -> Result<LaneConnection, StoreError> {
        let connect = async {
            let target = self.address.target();
            let mut connection = target.options.connect().await?;
            server::bound_silence(&mut connection).await?;
            server::check_writer(&mut connection).await?;
            let backend =
                server::set_up_for_commits(&mut connection, self.address.dialect, LOCK_TIMEOUT, self.statement_limit)
                    .await?;
            Ok(LaneConnection { connection, backend, generation: target.generation })
        };
        tokio::time::timeout(limit, connect).await.unwrap_or(Err(StoreError::TimedOut))
    }

    /// Interrupts the server process of a lane, over another connection. It is no longer found if the address has changed
    /// since.
    pub async fn interrupt(&self, backend: Backend, interrupt: Interrupt, limit: Duration) -> Result<(), StoreError> {
        let run = async {
            let mut connection = self.address.target().options.connect().await?;
            server::interrupt(&mut connection, backend, interrupt).await
        };
        tokio::time::timeout(limit, run).await.unwrap_or(Err(StoreError::TimedOut))
    }
}
