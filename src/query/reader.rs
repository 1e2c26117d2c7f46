//! Runs reads on connections of the pool, separately or coalesced, and turns failures into refusals.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::error;

use crate::domain::refusal::Refusal;
use crate::store::pool::{Held, Pool};
use crate::store::{FaultKind, StoreError};

use super::coalescer::Coalescer;

/// Coalesced reads that may fail.
pub type Reads<K, V> = Coalescer<K, Result<V, Refusal>>;

/// A handle to the pool; all clones share it.
#[derive(Clone, Debug)]
pub struct Reader {
    pool: Pool,
    /// Time limit of a coalesced read. Its requests have different deadlines.
    batch_limit: Duration,
}

/// The connections of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    pub in_use: usize,
    pub idle: usize,
    pub max: usize,
}

impl Reader {
    pub fn new(pool: Pool, batch_limit: Duration) -> Self {
        Self { pool, batch_limit }
    }

    /// Reads, until `deadline` at the latest.
    pub async fn read<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, Refusal> {
        self.pool.run(deadline.into(), work).await.map_err(|error| read_refusal(&error))
    }

    /// Like [`Self::read`], for callers that do not refuse a request.
    pub async fn try_read<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.pool.run(deadline.into(), work).await
    }

    /// A connection for a read of several parts.
    pub(super) async fn hold(&self, deadline: Instant) -> Result<Held, StoreError> {
        self.pool.hold(deadline.into()).await
    }

    /// Reads `key` together with the other keys that wait in `reads`. `read` takes several keys and returns their
    /// values in the same order.
    pub async fn load<K: Clone + Ord, V: Clone>(
        &self,
        reads: &Reads<K, V>,
        key: K,
        deadline: Instant,
        read: impl AsyncFn(&mut PgConnection, &[K]) -> Result<Vec<V>, StoreError>,
    ) -> Result<V, Refusal> {
        let read_all = async |keys: Vec<K>| match self.read_batch(&keys, &read).await {
            Ok(values) => values.into_iter().map(Ok).collect(),
            Err(error) if error.kind() == FaultKind::Rejected && keys.len() > 1 => {
                self.read_one_by_one(&keys, &read).await
            }
            Err(error) => vec![Err(read_refusal(&error)); keys.len()],
        };
        reads.load(key, deadline.into(), read_all).await.unwrap_or(Err(Refusal::StoreUnavailable))
    }

    /// A key that makes the common read fail does not affect the others. An unavailable database does.
    async fn read_one_by_one<K, V: Clone>(
        &self,
        keys: &[K],
        read: &impl AsyncFn(&mut PgConnection, &[K]) -> Result<Vec<V>, StoreError>,
    ) -> Vec<Result<V, Refusal>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let value = self.read_batch(std::slice::from_ref(key), read).await;
            let is_gone = value.as_ref().is_err_and(|error| error.kind() != FaultKind::Rejected);
            values.push(value.map(|mut own| own.remove(0)).map_err(|error| read_refusal(&error)));
            if is_gone {
                break;
            }
        }
        values.resize(keys.len(), Err(Refusal::StoreUnavailable));
        values
    }

    async fn read_batch<K, V>(
        &self,
        keys: &[K],
        read: &impl AsyncFn(&mut PgConnection, &[K]) -> Result<Vec<V>, StoreError>,
    ) -> Result<Vec<V>, StoreError> {
        let deadline = Instant::now() + self.batch_limit;
        self.try_read(deadline, async |connection: &mut PgConnection| read(connection, keys).await).await
    }

    pub fn connections(&self) -> Connections {
        let Self { pool, .. } = self;
        Connections { in_use: pool.in_use_count(), idle: pool.idle_count(), max: pool.connections_max() }
    }
}

/// The refusal for a failed read.
pub fn read_refusal(error: &StoreError) -> Refusal {
    match error.kind() {
        FaultKind::Rejected | FaultKind::Conflict(_) => {
            error!(%error, "a read failed");
            Refusal::Internal
        }
        _ => Refusal::StoreUnavailable,
    }
}
