//! The connections for everything outside the commit lanes. Each use has a deadline, at which its connection is closed.
//! Only connections to writable servers are used. sqlx's pool is not used, because it waits without limit for an
//! unresponsive server when a connection is returned (docs/adr/0010).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

use crate::domain::cell::Dialect;

use super::address::Address;
use super::{StoreError, server};

/// How long a caller waits for a connection, including a new one.
pub const ACQUIRE_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A connection that was not checked for this long is checked before it is used.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of a check. A connection that takes longer is dropped.
const CHECK_LIMIT: Duration = Duration::from_secs(1);
/// Maximum age of a connection, and maximum idle time.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);

/// A bounded set of connections. All clones share it.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: Address,
    connections_max: usize,
    statement_timeout: Duration,
    permits: Arc<Semaphore>,
    /// The most recently used one is at the back, and is used next.
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
    /// That of the [`Address`] that it was made for.
    generation: u64,
    made_at: Instant,
    checked_at: Instant,
}

impl Pool {
    /// Connects when a connection is first needed. The server cancels statements after `statement_timeout`.
    pub fn new(address: impl Into<Address>, connections_max: usize, statement_timeout: Duration) -> Self {
        Self(Arc::new(Inner {
            address: address.into(),
            connections_max,
            statement_timeout,
            permits: Arc::new(Semaphore::new(connections_max)),
            idle: Mutex::default(),
        }))
    }

    /// Runs `work` on a connection until `deadline` at the latest. If the deadline passes, the connection is closed.
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

    /// Returns a connection for work of several parts, each with its own deadline.
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

    /// Closes all idle connections and refuses further use. Does not wait for connections in use.
    pub async fn close(&self, limit: Duration) {
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        let close_all = async {
            for Idle { live, .. } in idle {
                let _ = live.connection.close().await;
            }
        };
        // Connections that do not close in time are dropped.
        let _ = tokio::time::timeout(limit, close_all).await;
    }

    pub fn dialect(&self) -> Dialect {
        self.0.address.dialect
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

    /// The most recently used idle connection, if it passes its check. If it fails, all idle connections are closed:
    /// they lead to the same server, and checking each in turn would take too long.
    async fn take_idle(&self, deadline: Instant) -> Option<Live> {
        let Idle { mut live, .. } = self.idle().pop_back()?;
        if !self.0.address.is_current(live.generation) {
            self.forget_idle();
            return None;
        }
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

    /// Tries to connect until the deadline, because a restarting server is soon available. Returns the cause of the
    /// failure.
    async fn connect(&self, deadline: Instant) -> Result<Live, StoreError> {
        let mut failure = StoreError::TimedOut;
        loop {
            let (made_at, target) = (Instant::now(), self.0.address.target());
            let generation = target.generation;
            match timeout_at(deadline, server::connect(&target.options, self.0.statement_timeout)).await {
                Ok(Ok(connection)) => return Ok(Live { connection, generation, made_at, checked_at: made_at }),
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
        if live.made_at.elapsed() < AGE_MAX && self.0.address.is_current(live.generation) && !self.0.permits.is_closed()
        {
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

/// A connection in use. Dropping it without [`Held::release`] closes it.
#[derive(Debug)]
pub struct Held {
    /// `None` after a part was cut off or found that the server is not writable.
    live: Option<Live>,
    pool: Pool,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    /// Runs one part of the work. If the deadline passes or this future is dropped, the connection is closed, because
    /// its state is unknown.
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

    /// Rolls back an open transaction and returns the connection to the pool.
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
