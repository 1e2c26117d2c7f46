//! Reads all pairs of a tenant from one snapshot, as a stream of parts. At most two parts are in memory. An export that
//! cannot be completed ends with an error.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use sqlx::PgConnection;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::exports::{ExportCursor, Exported, pairs_after};
use crate::store::pool::Held;
use crate::store::{StoreError, server};
use crate::telemetry::RequestSpan;

use super::reader::{Reader, read_refusal};

/// Number of pairs in one part. A part is at most 400 kB.
const PAIRS_OF_PART: i64 = 1000;

/// Time limit of PostgreSQL for one part.
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);

/// Time limit of an export. The deadline of the request applies only to its first part. At the slowest permitted rate,
/// this is enough for 54 MB. It is limited because PostgreSQL cannot remove row versions that an open snapshot may see,
/// and busy counters create many.
const EXPORT_LIMIT: Duration = Duration::from_secs(900);

/// Limits concurrent exports. Each keeps a connection while its client reads. A tenant may have one, and all together
/// at most a quarter of the pool.
#[derive(Debug)]
pub struct ExportTurns {
    permits: Arc<Semaphore>,
    /// Tenants with an export in progress.
    tenants: Mutex<HashSet<Tenant>>,
    ended: Notify,
}

impl ExportTurns {
    pub fn new(connections_max: u32) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new((connections_max as usize / 4).max(1)));
        Arc::new(Self { permits, tenants: Mutex::default(), ended: Notify::new() })
    }

    /// Waits for the tenant's turn and then for a permit, so that the requests of one tenant do not queue before those
    /// of another.
    async fn acquire(self: &Arc<Self>, tenant: &Tenant) -> Result<ExportTurn, Refusal> {
        loop {
            let ended = self.ended.notified();
            if self.tenants().insert(tenant.clone()) {
                break;
            }
            ended.await;
        }
        let mut turn = ExportTurn { turns: self.clone(), tenant: tenant.clone(), _permit: None };
        let permit = self.permits.clone().acquire_owned().await;
        turn._permit = Some(permit.map_err(|_| Refusal::StoreUnavailable)?);
        Ok(turn)
    }

    fn tenants(&self) -> MutexGuard<'_, HashSet<Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ExportTurn {
    turns: Arc<ExportTurns>,
    tenant: Tenant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for ExportTurn {
    fn drop(&mut self) {
        self.turns.tenants().remove(&self.tenant);
        self.turns.ended.notify_waiters();
    }
}

/// What the reading task sends. If the channel closes without `End`, the export failed.
enum Message {
    Pairs(Vec<Exported>),
    End,
    Fault(StoreError),
}

/// The export failed before it was complete.
#[derive(Debug, thiserror::Error)]
#[error("the export broke off")]
pub struct BrokenOff;

/// Returns the pairs in parts, in the order of their first record, once the first part is read. A failure up to there
/// is a refusal. Only the last part may be empty.
pub async fn pairs(
    reader: &Reader,
    turns: &Arc<ExportTurns>,
    tenant: &Tenant,
    deadline: std::time::Instant,
) -> Result<impl Stream<Item = Result<Vec<Exported>, BrokenOff>> + Send + use<>, Refusal> {
    let turn = turns.acquire(tenant).await?;
    let connection = reader.hold(deadline).await.map_err(|error| read_refusal(&error))?;
    let (sender, mut receiver) = channel(1);
    let tenant = tenant.clone();
    // A separate task, so that reading is not cut off between two statements of the snapshot. It ends when the stream
    // is dropped, which happens when the client reads too slowly.
    tokio::spawn(RequestSpan::carry(async move {
        read_all(connection, &tenant, sender).await;
        drop(turn);
    }));
    match receiver.recv().await {
        Some(Message::Fault(error)) => Err(read_refusal(&error)),
        None => Err(Refusal::StoreUnavailable),
        first => Ok(parts(first, receiver)),
    }
}

fn parts(first: Option<Message>, receiver: Receiver<Message>) -> impl Stream<Item = Result<Vec<Exported>, BrokenOff>> {
    stream::unfold((first, receiver), |(first, mut receiver)| async move {
        let message = match first {
            Some(message) => Some(message),
            None => receiver.recv().await,
        };
        match message {
            Some(Message::Pairs(pairs)) => Some((Ok(pairs), (None, receiver))),
            Some(Message::End) => None,
            Some(Message::Fault(_)) | None => Some((Err(BrokenOff), (None, receiver))),
        }
    })
}

async fn read_all(connection: Held, tenant: &Tenant, sender: Sender<Message>) {
    let last = match timeout(EXPORT_LIMIT, read_parts(connection, tenant, &sender)).await {
        Ok(Ok(true)) => Message::End,
        Ok(Ok(false)) => return warn!("an export was given up, because its client stopped reading"),
        Ok(Err(error)) => {
            warn!(%error, "an export broke off");
            Message::Fault(error)
        }
        Err(_) => return warn!("an export was given up, because it took too long"),
    };
    // The client may have disconnected.
    let _ = sender.send(last).await;
}

/// False if the client has disconnected.
async fn read_parts(mut connection: Held, tenant: &Tenant, sender: &Sender<Message>) -> Result<bool, StoreError> {
    connection.run(Instant::now() + STATEMENT_LIMIT, server::hold_snapshot).await?;
    let mut last = ExportCursor::start();
    loop {
        // Many short results instead of one long one: an unfinished result must be read to its end before the
        // connection can be used again.
        let read = async |snapshot: &mut PgConnection| pairs_after(snapshot, tenant, &last, PAIRS_OF_PART).await;
        let pairs = connection.run(Instant::now() + STATEMENT_LIMIT, read).await?;
        last = pairs.last().map_or(last, ExportCursor::of);
        let is_last = (pairs.len() as i64) < PAIRS_OF_PART;
        if sender.send(Message::Pairs(pairs)).await.is_err() {
            return Ok(false);
        }
        if is_last {
            break;
        }
    }
    let deadline = Instant::now() + STATEMENT_LIMIT;
    connection.run(deadline, server::end_snapshot).await?;
    connection.release(deadline).await;
    Ok(true)
}
