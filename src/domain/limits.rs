//! The limits of the running system, kept in the database and the same for every replica.

/// One row of the table `limits`. Counts unless the name ends in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub rate_limit_per_window: i64,
    pub rate_limit_window_ms: i64,
    pub bulk_max_items: i64,
    pub event_log_cap: i64,
    pub usage_store_max_keys: i64,
    pub services_store_max_keys: i64,
    pub webhook_store_max_keys: i64,
    pub api_key_store_max_keys: i64,
}
