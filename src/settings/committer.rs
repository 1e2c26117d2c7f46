//! Settings of the commit pipeline.

use std::time::Duration;

/// Maximum duration of a lane's statement, unless the deadline of requests is shorter.
const STATEMENT_LIMIT: Duration = Duration::from_secs(3);

/// Below the deadline of a request, so that a statement that takes too long ends before its requests must be answered.
pub fn statement_limit(request_timeout: Duration) -> Duration {
    STATEMENT_LIMIT.min(request_timeout / 2).max(Duration::from_millis(10))
}

/// Settings of the commit pipeline.
#[derive(Clone, Debug)]
pub struct CommitterSettings {
    /// Number of lanes. Each has one connection.
    pub lanes: usize,
    /// Maximum number of rows in one commit, unless a single request has more.
    pub batch_max: usize,
    /// Maximum number of waiting commands over all lanes.
    pub queue_max: usize,
    /// Lifetime of an idempotency record.
    pub ttl_ms: i64,
    /// Refuse usage of services without a price, and do not settle them.
    pub require_registered_services: bool,
    /// Maximum duration of a statement. Below the deadline of a request.
    pub statement_limit: Duration,
}
