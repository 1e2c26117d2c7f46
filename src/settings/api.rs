//! Settings that the API uses.

use std::time::Duration;

use super::environment::Environment;
use super::error::SettingsError;
use super::origin;
use super::trusted_proxies::TrustedProxies;

#[derive(Clone, Debug)]
pub struct ApiSettings {
    pub require_api_key: bool,
    pub admin_api_key: Option<String>,
    /// A token that permits reading metrics.
    pub metrics_token: Option<String>,
    pub trusted_proxies: TrustedProxies,
    pub request_timeout: Duration,
    /// How long keys of tenants in other cells are valid while the home cell does not respond. In that time no key can be
    /// revoked.
    pub home_outage_max: Duration,
    /// Allow webhook targets outside the public internet.
    pub webhook_allow_private: bool,
    pub allow_admin_reset: bool,
    pub rate_limit: bool,
    /// Normalised.
    pub cors_allowed_origins: Vec<String>,
    /// The smallest response that is compressed. `None` if compression is off.
    pub compression_threshold_bytes: Option<u64>,
}

impl ApiSettings {
    pub(super) fn read(
        env: &Environment<'_>,
        require_api_key: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Self, SettingsError> {
        let admin_api_key = env.secret("ADMIN_API_KEY")?;
        if require_api_key && admin_api_key.is_none() {
            return Err(SettingsError("REQUIRE_API_KEY=true needs ADMIN_API_KEY to be set".to_owned()));
        }
        Ok(Self {
            require_api_key,
            admin_api_key,
            metrics_token: metrics_token(env)?,
            trusted_proxies: TrustedProxies::read(env)?,
            request_timeout: env.ms("REQUEST_TIMEOUT_MS", Duration::from_secs(30), 100..=3_600_000)?,
            home_outage_max: env.ms("HOME_OUTAGE_MAX_MS", Duration::from_mins(5), 0..=86_400_000)?,
            webhook_allow_private: env.switch("WEBHOOK_ALLOW_PRIVATE", false)?,
            allow_admin_reset: allow_admin_reset(env, warnings),
            rate_limit: env.switch("RATE_LIMIT", true)?,
            cors_allowed_origins: cors_allowed_origins(env, warnings)?,
            compression_threshold_bytes: compression_threshold_bytes(env)?,
        })
    }
}

/// The token is sent in a header, so its characters are restricted. Errors do not repeat it.
fn metrics_token(env: &Environment<'_>) -> Result<Option<String>, SettingsError> {
    match env.secret("METRICS_TOKEN")? {
        Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(SettingsError("METRICS_TOKEN must be visible ASCII characters".to_owned()))
        }
        token => Ok(token),
    }
}

/// Anything else than a clear yes counts as no.
fn allow_admin_reset(env: &Environment<'_>, warnings: &mut Vec<String>) -> bool {
    let text = env.text_or("ALLOW_ADMIN_RESET", "false");
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => true,
        "0" | "false" | "no" | "off" => false,
        _ => {
            warnings.push(format!("ALLOW_ADMIN_RESET is off: \"{text}\" is not 1, true, yes or on"));
            false
        }
    }
}

fn cors_allowed_origins(env: &Environment<'_>, warnings: &mut Vec<String>) -> Result<Vec<String>, SettingsError> {
    let text = env.text("CORS_ALLOWED_ORIGINS").unwrap_or_default();
    let mut origins = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        if entry == "*" {
            return Err(SettingsError("CORS_ALLOWED_ORIGINS wildcard is not supported".to_owned()));
        }
        match origin::normalise(entry) {
            Some(origin) => origins.push(origin),
            None => warnings.push(format!("CORS_ALLOWED_ORIGINS: \"{entry}\" is no http(s) origin and is skipped")),
        }
    }
    Ok(origins)
}

/// `None` if compression is off.
fn compression_threshold_bytes(env: &Environment<'_>) -> Result<Option<u64>, SettingsError> {
    let threshold_bytes = env.int("COMPRESSION_THRESHOLD_BYTES", 1024, 1..=1_000_000_000)?;
    Ok(env.switch("COMPRESSION", false)?.then_some(threshold_bytes))
}
