//! The HTTP server: accepts connections up to the limits, and drains at a stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
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

/// How long a refused connection is kept open.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Serves until `stop`. Then it accepts no connections, closes idle ones and waits for running requests. Returns false
/// if some were still running after `drain_limit`, and aborts them.
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
        let (mut stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Probably out of file descriptors: wait until some are closed.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match admission.connect(peer.ip()) {
            Some(permit) => {
                let served = connection::serve(stream, permit, router.clone(), limits, stop.clone());
                connections.spawn(served);
            }
            None => {
                if let Ok(turn) = refusals.clone().try_acquire_owned() {
                    tokio::spawn(async move {
                        let response = refused_head::refusal(Refusal::TooManyConnections);
                        let _ = timeout(REFUSAL_LIMIT, refused_head::send(&mut stream, &response)).await;
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
