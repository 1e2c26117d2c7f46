//! What happens in the background. A job is `run_once` and a pause, over and over; tests
//! call `run_once` by hand.

pub mod eviction;
pub mod janitor;
pub mod watch_runtime_config;
pub mod webhooks;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{Span, error_span};

/// How long one step of a job may take: a transaction, or a statement that commits by itself. Each is small.
pub const STEP_LIMIT: Duration = Duration::from_secs(10);

/// The span of one run of a job, which ties log lines to it. Runs count from the start of this process. At the highest level,
/// so that it is there at every level of the log.
fn run_span(job: &'static str, run: u64) -> Span {
    error_span!("job", job, run)
}

/// Waits for `pause`. False if the service stops meanwhile.
pub async fn pause(pause: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}
