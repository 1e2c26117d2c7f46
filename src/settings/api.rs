//! Settings that the API uses.

use std::time::Duration;

use super::trusted_proxies::TrustedProxies;

#[derive(Clone, Debug)]
pub struct ApiSettings {
    pub require_api_key: bool,
    pub admin_api_key: Option<String>,
    /// A token that permits reading metrics.
    pub metrics_token: Option<String>,
    pub trusted_proxies: TrustedProxies,
    pub request_timeout: Duration,
    /// Allow webhook targets outside the public internet.
    pub webhook_allow_private: bool,
    pub allow_admin_reset: bool,
    pub rate_limit: bool,
    /// Normalised.
    pub cors_allowed_origins: Vec<String>,
    /// The smallest response that is compressed. `None` if compression is off.
    pub compression_threshold_bytes: Option<u64>,
}
