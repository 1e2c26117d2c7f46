//! The HTTP server: accepts connections, as many as may be open, and drains when told.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::domain::refusal::Refusal;

use crate::api::http::admission::Admission;
use crate::api::http::connection;
use crate::api::http::current_router::CurrentRouter;
use crate::api::http::refused_head;

/// How long a connection is kept that is one too many.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Serves until `stop`; then no new connections, idle ones close and running requests finish. False if some were still
/// running after `drain_limit`, and were cut off.
pub async fn serve(
    listener: TcpListener,
    router: CurrentRouter,
    admission: Admission,
    drain_limit: Duration,
    stop: CancellationToken,
) -> bool {
    let limits = *admission.limits();
    let refusals = Arc::new(Semaphore::new(limits.refusals_max));
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: those in use have to end first.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match admission.connect(peer.ip()) {
            Some(permit) => {
                let served = connection::serve(stream, peer, permit, router.clone(), limits, stop.clone());
                connections.spawn(served);
            }
            None => {
                if let Ok(turn) = refusals.clone().try_acquire_owned() {
                    tokio::spawn(async move {
                        let _ = timeout(REFUSAL_LIMIT, refuse(stream)).await;
                        drop(turn);
                    });
                }
            }
        }
    }
    drop((listener, router));
    connections.close();
    timeout(drain_limit, connections.wait()).await.is_ok()
}

/// Answers a connection that is one too many. What it has sent is read, or its answer would be lost.
async fn refuse(mut stream: TcpStream) {
    let answer = refused_head::refusal(Refusal::TooManyConnections);
    if stream.write_all(&answer).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut space = [0; 4096];
        while stream.read(&mut space).await.is_ok_and(|bytes| bytes > 0) {}
    }
}
