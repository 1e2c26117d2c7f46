//! The runtime configuration: settings that operators change while the service runs. It is stored in the database, and
//! is the same for every replica.

use schemars::JsonSchema;
use serde::Serialize;

/// The limits in force. A name without a unit is a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate_limit_per_window: 60,
            rate_limit_window_ms: 60_000,
            bulk_max_items: 100,
            event_log_cap: 10_000,
            usage_store_max_keys: 100_000,
            services_store_max_keys: 10_000,
            webhook_store_max_keys: 10_000,
            api_key_store_max_keys: 10_000,
        }
    }
}

/// The name of a limit in the API, and its maximum. The minimum is 1.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub key: &'static str,
    pub max: i64,
    pub of: fn(&mut Limits) -> &mut i64,
}

/// In the order in which they are shown and checked.
pub const LIMITS: [Limit; 8] = [
    Limit { key: "rateLimitPerWindow", max: 1_000_000, of: |limits| &mut limits.rate_limit_per_window },
    Limit { key: "rateLimitWindowMs", max: 86_400_000, of: |limits| &mut limits.rate_limit_window_ms },
    Limit { key: "bulkMaxItems", max: 1000, of: |limits| &mut limits.bulk_max_items },
    Limit { key: "eventLogCap", max: 100_000, of: |limits| &mut limits.event_log_cap },
    Limit { key: "usageStoreMaxKeys", max: 100_000, of: |limits| &mut limits.usage_store_max_keys },
    Limit { key: "servicesStoreMaxKeys", max: 10_000, of: |limits| &mut limits.services_store_max_keys },
    Limit { key: "webhookStoreMaxKeys", max: 10_000, of: |limits| &mut limits.webhook_store_max_keys },
    Limit { key: "apiKeyStoreMaxKeys", max: 10_000, of: |limits| &mut limits.api_key_store_max_keys },
];

/// The row of the table `runtime_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    pub limits: Limits,
    pub paused: bool,
    /// Increases with each change of the row.
    pub revision: i64,
    /// Increases when an API key is created or revoked.
    pub keys_revision: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_limits_and_their_json_are_one() {
        let mut limits = Limits::default();
        for (number, limit) in LIMITS.iter().enumerate() {
            *(limit.of)(&mut limits) = number as i64;
        }
        let json = serde_json::to_value(limits).expect("JSON");
        let members: Vec<(&str, i64)> = LIMITS.iter().zip(0..).map(|(limit, number)| (limit.key, number)).collect();
        let found: Vec<(&str, i64)> = json
            .as_object()
            .expect("an object")
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_i64().expect("a number")))
            .collect();
        assert_eq!(found, members);
    }
}
