//! How the janitor is set up.

use std::time::Duration;

/// How the janitor is set up.
#[derive(Clone, Debug)]
pub struct JanitorSettings {
    pub pause: Duration,
    /// Records in total.
    pub records_max: i64,
    /// Records of one caller, and their bytes.
    pub records_of_caller_max: i64,
    pub bytes_of_caller_max: i64,
    /// Lifetime of a record.
    pub ttl_ms: i64,
}
