//! Connections for everything outside the commit lanes: handlers, jobs, health, metrics and commands. Each use has a
//! deadline that ends the work and closes its connection. Only a connection that leads to a writer is handed out.
//! A pool of our own, because sqlx's waits without limit for a silent server when a connection is given back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use super::{StoreError, server};

/// How long a caller waits for a connection, a new one included.
pub const ACQUIRE_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that was not checked for this long is checked before it is used, however busy it is.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a check may take. A server that is silent for longer is given up.
const CHECK_LIMIT: Duration = Duration::from_secs(1);
/// How long a connection is kept, and how long without use.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);

/// A bounded set of connections; all clones share it.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: PgConnectOptions,
    connections_max: usize,
    statement_timeout: Duration,
    permits: Arc<Semaphore>,
    /// The one used last is at the back, and used next.
    idle: Mutex<VecDeque<Idle>>,
}

#[derive(Debug)]
struct Idle {
    live: Live,
    since: Instant,
}

#[derive(Debug)]
struct Live {
    connection: PgConnection,
    made_at: Instant,
    checked_at: Instant,
}

impl Pool {
    /// Connects when a connection is first needed. The server cancels statements after `statement_timeout`.
    pub fn new(options: PgConnectOptions, connections_max: usize, statement_timeout: Duration) -> Self {
        Self(Arc::new(Inner {
            options,
            connections_max,
            statement_timeout,
            permits: Arc::new(Semaphore::new(connections_max)),
            idle: Mutex::default(),
        }))
    }

    /// Runs `work` on a connection, and ends it at `deadline`, when the connection is closed.
    pub async fn run<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut held = self.hold(deadline).await?;
        let result = held.run(deadline, work).await;
        held.release(deadline).await;
        result
    }

    /// A connection for work of many parts, each with a deadline of its own.
    pub async fn hold(&self, deadline: Instant) -> Result<Held, StoreError> {
        let deadline = deadline.min(Instant::now() + ACQUIRE_LIMIT);
        let permits = self.0.permits.clone();
        let permit = match timeout_at(deadline, permits.acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(StoreError::Closed),
            Err(_) => return Err(StoreError::PoolExhausted),
        };
        let live = match self.take_idle(deadline).await {
            Some(live) => live,
            None => self.connect(deadline).await?,
        };
        Ok(Held { live: Some(live), pool: self.clone(), _permit: permit })
    }

    /// Closes all idle connections and refuses further use. Never waits for a connection in use.
    pub async fn close(&self, limit: Duration) {
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        let close_all = async {
            for Idle { live, .. } in idle {
                let _ = live.connection.close().await;
            }
        };
        // What does not take its leave in time is just dropped.
        let _ = tokio::time::timeout(limit, close_all).await;
    }

    pub fn connections_max(&self) -> usize {
        self.0.connections_max
    }

    pub fn idle_count(&self) -> usize {
        self.idle().len()
    }

    pub fn in_use_count(&self) -> usize {
        self.0.connections_max - self.0.permits.available_permits()
    }

    /// The idle connection used last, if it is still good. One that is not condemns all others: whatever happened to
    /// its server happened to theirs, and to wait for each of them in turn would take too long.
    async fn take_idle(&self, deadline: Instant) -> Option<Live> {
        let Idle { mut live, .. } = self.idle().pop_back()?;
        if live.checked_at.elapsed() < CHECK_INTERVAL {
            return Some(live);
        }
        let checked_at = Instant::now();
        let check = server::check_writer(&mut live.connection);
        if let Ok(Ok(())) = timeout_at(deadline.min(checked_at + CHECK_LIMIT), check).await {
            live.checked_at = checked_at;
            return Some(live);
        }
        self.forget_idle();
        None
    }

    /// Tries for as long as there is time: a server that restarts is soon back. Says why it did not work.
    async fn connect(&self, deadline: Instant) -> Result<Live, StoreError> {
        let mut failure = StoreError::TimedOut;
        loop {
            let made_at = Instant::now();
            match timeout_at(deadline, server::connect(&self.0.options, self.0.statement_timeout)).await {
                Ok(Ok(connection)) => return Ok(Live { connection, made_at, checked_at: made_at }),
                Ok(Err(error)) => failure = error,
                Err(_) => return Err(failure),
            }
            if Instant::now() + CONNECT_PAUSE >= deadline {
                return Err(failure);
            }
            sleep(CONNECT_PAUSE).await;
        }
    }

    fn give_back(&self, live: Live) {
        let mut idle = self.idle();
        while idle.front().is_some_and(|oldest| oldest.since.elapsed() > IDLE_MAX) {
            idle.pop_front();
        }
        if live.made_at.elapsed() < AGE_MAX && !self.0.permits.is_closed() {
            idle.push_back(Idle { live, since: Instant::now() });
        }
    }

    fn forget_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use. Dropped without [`Held::release`], it is closed.
#[derive(Debug)]
pub struct Held {
    /// None once a part was cut off or found the server unfit.
    live: Option<Live>,
    pool: Pool,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    /// Runs one part of the work. After a deadline that passed, or if this future is dropped, the connection is closed:
    /// nobody knows what it still does.
    pub async fn run<T>(
        &mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut live = self.live.take().ok_or(StoreError::TimedOut)?;
        let result = timeout_at(deadline, work(&mut live.connection)).await.unwrap_or(Err(StoreError::TimedOut));
        match &result {
            Err(StoreError::TimedOut) => {}
            Err(error) if error.condemns_connection() => self.pool.forget_idle(),
            _ => self.live = Some(live),
        }
        result
    }

    /// Gives the connection back, once what it left open is rolled back.
    pub async fn release(mut self, deadline: Instant) {
        let Some(mut live) = self.live.take() else { return };
        if live.connection.should_flush() {
            let flushed = timeout_at(deadline, live.connection.ping()).await;
            if !matches!(flushed, Ok(Ok(()))) {
                return;
            }
        }
        self.pool.give_back(live);
    }
}
