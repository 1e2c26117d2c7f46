//! Settings of the commit pipeline.

use std::time::Duration;

use crate::domain::keyring::Keyring;

use super::environment::Environment;
use super::error::SettingsError;

/// Maximum duration of a lane's statement, unless the deadline of requests is shorter.
const STATEMENT_LIMIT: Duration = Duration::from_secs(3);

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
    /// Encrypts the secrets of webhooks.
    pub keyring: Keyring,
}

impl CommitterSettings {
    pub(super) fn read(env: &Environment<'_>, request_timeout: Duration, ttl_ms: i64) -> Result<Self, SettingsError> {
        Ok(Self {
            lanes: env.int("COMMIT_LANES", 1, 1..=64)? as usize,
            batch_max: env.int("COMMIT_BATCH_MAX", 512, 1..=10_000)? as usize,
            queue_max: env.int("COMMIT_QUEUE_MAX", 10_000, 1..=1_000_000)? as usize,
            ttl_ms,
            require_registered_services: env.switch("REQUIRE_REGISTERED_SERVICES", false)?,
            statement_limit: statement_limit(request_timeout),
            keyring: keyring(env)?,
        })
    }
}

/// Empty, or `plain` first: secrets are stored as plain text.
fn keyring(env: &Environment<'_>) -> Result<Keyring, SettingsError> {
    let text = env.secret("ENCRYPTION_KEYS")?.unwrap_or_default();
    Keyring::parse(&text).map_err(|accepted| SettingsError(format!("ENCRYPTION_KEYS must be {accepted}")))
}

/// Below the deadline of a request, so that a statement that takes too long ends before its requests must be answered.
fn statement_limit(request_timeout: Duration) -> Duration {
    STATEMENT_LIMIT.min(request_timeout / 2).max(Duration::from_millis(10))
}
