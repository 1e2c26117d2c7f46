//! What happens in the background. A job is `run_once` and a pause, over and over; tests
//! call `run_once` by hand.

pub mod eviction;
pub mod janitor;
pub mod watch_runtime_config;
pub mod webhooks;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long one step of a job may take: a transaction, or a statement that commits by itself. Each is small.
pub const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Waits for `pause`. False if the service stops meanwhile.
pub async fn pause(pause: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}
