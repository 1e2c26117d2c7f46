//! Listens for PostgreSQL's notifications on one channel, on a connection of its own that is checked while it is quiet.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire, ConnectOptions, Connection, PgConnection};
use tokio::time::{sleep, timeout};

use super::StoreError;

/// How long connecting, and the answer to a check, may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// A connection that was quiet for so long is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

pub struct Listener {
    options: PgConnectOptions,
    listener: PgListener,
}

impl Listener {
    pub async fn connect(options: &PgConnectOptions, channel: &str) -> Result<Self, StoreError> {
        // sqlx wants a pool of its own kind to take the connection from.
        let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = pool.acquire_timeout(ANSWER_LIMIT).connect_lazy_with(options.clone());
        let connect = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(channel).await?;
            Ok(listener)
        };
        let listener = timeout(ANSWER_LIMIT, connect).await.unwrap_or(Err(StoreError::TimedOut))?;
        Ok(Self { options: options.clone(), listener })
    }

    /// Returns at a notification. An error: the connection is lost, and with it notifications may be.
    pub async fn hear(&mut self) -> Result<(), StoreError> {
        loop {
            match timeout(CHECK_INTERVAL, self.listener.try_recv()).await {
                Ok(Ok(Some(_))) => return Ok(()),
                Ok(Ok(None)) => return Err(StoreError::Closed),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => self.check().await?,
            }
        }
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        let connection: &mut PgConnection = self.listener.acquire().await?;
        match timeout(ANSWER_LIMIT, connection.ping()).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                // A listener that is dropped says so to its server and waits for the answer without limit. Therefore
                // the silent connection is dropped here, and another one put into its place.
                *connection = connect(&self.options).await;
                Err(StoreError::TimedOut)
            }
        }
    }
}

async fn connect(options: &PgConnectOptions) -> PgConnection {
    loop {
        if let Ok(Ok(connection)) = timeout(ANSWER_LIMIT, options.connect()).await {
            return connection;
        }
        sleep(CONNECT_PAUSE).await;
    }
}
