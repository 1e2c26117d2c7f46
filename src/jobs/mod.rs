//! Background jobs. A job repeats `run_once` and a pause. Tests call `run_once` directly.

pub mod eviction;
pub mod janitor;
pub mod prune_preview;
pub mod verifier;
pub mod watch_runtime_config;
pub mod webhooks;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error_span};

use crate::store::StoreError;
use crate::telemetry::traces::JobTrace;

/// Time limit of one step of a job: a transaction, or a statement that commits implicitly. Each is small.
pub const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Runs `work` as one run of a job, which its log lines and its trace name. Runs are counted from the start of the process.
/// The level of the span is the highest, so that no `LOG_LEVEL` hides it.
async fn as_run<T>(
    job: &'static str,
    run: u64,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let trace = JobTrace::begin(job, run);
    let result = work.instrument(error_span!("job", job, run)).await;
    if let Some(trace) = trace {
        trace.end(result.as_ref().err());
    }
    result
}

/// Waits for `pause`. False if the service stops meanwhile.
pub async fn pause(pause: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}
