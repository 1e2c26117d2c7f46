//! Settings of the janitor.

use std::time::Duration;

use super::environment::Environment;
use super::error::SettingsError;

/// Settings of the janitor.
#[derive(Clone, Debug)]
pub struct JanitorSettings {
    pub pause: Duration,
    /// Maximum number of records in total.
    pub records_max: i64,
    /// Maximum number and size of the records of one caller.
    pub records_of_caller_max: i64,
    pub bytes_of_caller_max: i64,
    /// Lifetime of a record.
    pub ttl_ms: i64,
}

impl JanitorSettings {
    pub(super) fn read(env: &Environment<'_>, ttl_ms: i64) -> Result<Self, SettingsError> {
        let int = |name, default, min, max| env.int(name, default, min..=max).map(|value| value as i64);
        Ok(Self {
            pause: env.ms("JANITOR_INTERVAL_MS", Duration::from_secs(5), 10..=3_600_000)?,
            records_max: int("IDEMPOTENCY_CACHE_MAX_ENTRIES", 10_000_000, 1, 1_000_000_000_000)?,
            records_of_caller_max: int("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", 1_000_000, 1, 1_000_000_000_000)?,
            bytes_of_caller_max: int("IDEMPOTENCY_MAX_BYTES_PER_CALLER", 4 << 30, 1_000_000, 1_000_000_000_000_000)?,
            ttl_ms,
        })
    }
}
