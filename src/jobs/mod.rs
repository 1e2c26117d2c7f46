//! Background jobs. A job repeats `run_once` and a pause. Tests call `run_once` directly.

pub mod eviction;
pub mod janitor;
pub mod prune_preview;
pub mod sample_history;
pub mod tenant_move;
pub mod verifier;
pub mod watch_runtime_config;
pub mod webhooks;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error_span};

use crate::store::StoreError;
use crate::telemetry::traces::JobTrace;

/// Time limit of one step of a job: a transaction, or a statement that commits implicitly. Each is small.
pub const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Runs `work` as one run of a job, which its log lines and its trace name. Runs are counted from the start of the process.
/// The level of the span is the highest, so that no `LOG_LEVEL` hides it. `work` records its failures, and returns whether it
/// did something. Most runs find nothing to do; they have no trace.
async fn as_run(job: &'static str, run: u64, work: impl Future<Output = Result<bool, StoreError>>) {
    let began = Instant::now();
    match work.instrument(error_span!("job", job, run)).await {
        Ok(false) => {}
        result => JobTrace { job, run, began }.end(result.err().as_ref()),
    }
}

/// Waits for `pause`. False if the service stops meanwhile.
pub async fn pause(pause: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}
