//! The HTTP server: accepts connections, and drains when told.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Peer;
use super::connection::{self, Silence};
use super::pipeline::OriginalPath;
use super::starting::CurrentRouter;

/// Serves until `stop`; then no new connections, idle ones close and running requests finish. False if some were still
/// running after `drain_limit`, and were cut off.
pub async fn serve(
    listener: TcpListener,
    router: CurrentRouter,
    silence: Silence,
    drain_limit: Duration,
    stop: CancellationToken,
) -> bool {
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
        let _ = stream.set_nodelay(true);
        connections.spawn(connection::serve(stream, Peer(peer), router.clone(), silence, stop.clone()));
    }
    drop((listener, router));
    connections.close();
    tokio::time::timeout(drain_limit, connections.wait()).await.is_ok()
}

/// Notes the peer, and takes one optional trailing slash off the path.
pub(super) fn prepare(request: hyper::Request<Incoming>, peer: Peer) -> Request {
    let mut request = request.map(Body::new);
    let path = request.uri().path().to_owned();
    if path.len() > 1 && path.ends_with('/') {
        let bare = &path[..path.len() - 1];
        let target = match request.uri().query() {
            Some(query) => format!("{bare}?{query}"),
            None => bare.to_owned(),
        };
        if let Ok(uri) = target.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request.extensions_mut().insert(OriginalPath(path));
    request.extensions_mut().insert(peer);
    request
}
