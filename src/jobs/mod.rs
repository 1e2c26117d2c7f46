//! Background jobs. A job repeats `run_once` and a pause. Tests call `run_once` directly.

pub mod eviction;
pub mod janitor;
pub mod prune_preview;
pub mod verifier;
pub mod watch_runtime_config;
pub mod webhooks;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{Span, error_span};

/// Time limit of one step of a job: a transaction, or a statement that commits implicitly. Each is small.
pub const STEP_LIMIT: Duration = Duration::from_secs(10);

/// The span of one run of a job, which marks its log lines. Runs are counted from the start of the process. Its level
/// is the highest, so that no `LOG_LEVEL` hides it.
fn run_span(job: &'static str, run: u64) -> Span {
    error_span!("job", job, run)
}

/// Waits for `pause`. False if the service stops meanwhile.
pub async fn pause(pause: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}
