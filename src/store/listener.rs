//! Listens for notifications of PostgreSQL on one channel, on a separate connection that is checked while it is idle.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire, ConnectOptions, Connection, PgConnection};
use tokio::time::{sleep, timeout};

use super::StoreError;

/// Time limit for connecting, and for the response to a check.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// A connection that was idle for this long is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

pub struct Listener {
    options: PgConnectOptions,
    listener: PgListener,
}

impl Listener {
    pub async fn connect(options: &PgConnectOptions, channel: &str) -> Result<Self, StoreError> {
        // sqlx's listener takes its connection from a pool of sqlx.
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

    /// Returns when a notification arrives. An error means that the connection, and perhaps a notification, was lost.
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
                // Dropping the listener would send UNLISTEN and wait for the response without a limit. The unresponsive
                // connection is therefore replaced here.
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
