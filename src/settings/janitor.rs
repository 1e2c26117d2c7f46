//! Settings of the janitor.

use std::time::Duration;

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
