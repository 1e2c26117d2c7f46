//! How the commit pipeline is set up.

use std::time::Duration;

/// Longest that a statement of a lane may run, unless requests have to be answered earlier.
const STATEMENT_LIMIT: Duration = Duration::from_secs(3);

/// Below the deadline of a request, so that a statement that takes too long has ended before its outcome is asked for.
pub fn statement_limit(request_timeout: Duration) -> Duration {
    STATEMENT_LIMIT.min(request_timeout / 2).max(Duration::from_millis(10))
}

/// How the committer is set up.
#[derive(Clone, Debug)]
pub struct CommitterSettings {
    /// Lanes, each with a connection of its own.
    pub lanes: usize,
    /// Most rows that the requests of one commit bring, unless a single one brings more.
    pub batch_max: usize,
    /// Most commands waiting, over all lanes.
    pub queue_max: usize,
    /// Lifetime of an idempotency record.
    pub ttl_ms: i64,
    /// Services without a price take no usage and are not settled.
    pub require_registered_services: bool,
    /// Longest that one statement of a lane may run. Lies below the deadline of a request.
    pub statement_limit: Duration,
}
