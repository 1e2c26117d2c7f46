//! The part of the settings that requests are judged by.

use std::time::Duration;

use super::trusted_proxies::TrustedProxies;

#[derive(Clone, Debug)]
pub struct ApiSettings {
    pub require_api_key: bool,
    pub admin_api_key: Option<String>,
    /// What GET metrics is asked with, besides the operator's key.
    pub metrics_token: Option<String>,
    pub trusted_proxies: TrustedProxies,
    pub request_timeout: Duration,
    /// Webhooks may have targets outside the public internet.
    pub webhook_allow_private: bool,
    pub allow_admin_reset: bool,
    pub rate_limit: bool,
    /// Normalised.
    pub cors_allowed_origins: Vec<String>,
    /// None: responses are not compressed. Else from how many bytes on.
    pub compression_threshold_bytes: Option<u64>,
}
