//! The settings, read from environment variables and validated. docs/configuration.md lists them for operators. An
//! empty variable counts as unset. A value that is not accepted is a startup error.

pub mod api;
pub mod cells;
pub mod committer;
mod database_url;
pub mod egress_proxy;
mod environment;
mod error;
pub mod http_limits;
pub mod janitor;
pub mod origin;
pub mod traces;
pub mod trusted_proxies;
pub mod variable;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use api::ApiSettings;
use cells::CellSettings;
use committer::CommitterSettings;
use egress_proxy::EgressProxy;
use environment::{Environment, refuse};
pub use error::SettingsError;
use http_limits::HttpLimits;
use janitor::JanitorSettings;
use traces::TraceSettings;
use variable::Variable;

#[derive(Clone, Debug)]
pub struct Settings {
    pub host: IpAddr,
    pub port: u16,
    /// `None`: the private PostgreSQL in `data_dir`. With CELLS_FILE it is that of the home cell.
    pub database: Option<PgConnectOptions>,
    /// The cells of CELLS_FILE, the home cell first. Empty: there is one database.
    pub cells: Vec<CellSettings>,
    pub data_dir: PathBuf,
    /// LOCAL_POSTGRES is true.
    pub local_postgres: bool,
    pub pool_max: u32,
    pub migrate_on_start: bool,
    pub api: ApiSettings,
    pub committer: CommitterSettings,
    pub janitor: JanitorSettings,
    /// Pause between two background verifications. Zero: no verification.
    pub verify_interval: Duration,
    /// The proxy for webhooks. HTTPS_PROXY is ignored.
    pub webhook_proxy: Option<EgressProxy>,
    pub http_limits: HttpLimits,
    pub shutdown_grace: Duration,
    pub log_level: String,
    /// JSON lines instead of lines for people.
    pub log_json: bool,
    /// None: traces are off.
    pub traces: Option<TraceSettings>,
    /// Warnings about accepted settings, to be logged once logging has started.
    pub warnings: Vec<String>,
    /// All variables with their values in force, by name.
    pub variables: Vec<Variable>,
}

impl Settings {
    /// `read` returns the value of an environment variable. `is_terminal` says whether the log goes to a terminal.
    pub fn read(read: impl Fn(&str) -> Option<String>, is_terminal: bool) -> Result<Self, SettingsError> {
        let env = Environment::of(&read);
        let host = host(&env)?;
        let says_require = env.text("REQUIRE_API_KEY").is_some();
        let require_api_key = match env.text_or("REQUIRE_API_KEY", "false").to_ascii_lowercase().as_str() {
            "true" => true,
            "false" => false,
            text => return Err(refuse("REQUIRE_API_KEY", "true or false", text)),
        };
        if !host.is_loopback() && !says_require {
            let text =
                format!("HOST {host} is not a loopback address: set REQUIRE_API_KEY to true, or to false explicitly");
            return Err(SettingsError(text));
        }
        let data_dir: PathBuf = env.text_or("DATA_DIR", "./.agentpay").into();
        let cells = env.text("CELLS_FILE").map_or(Ok(Vec::new()), |path| cells::read(&path))?;
        let database = database(&env, &cells)?;
        let local_postgres = local_postgres(&env, database.is_none(), host, &data_dir)?;
        let log_level = env.text_or("LOG_LEVEL", "info").to_ascii_lowercase();
        if !["fatal", "error", "warn", "info", "debug", "trace", "silent"].contains(&log_level.as_str()) {
            return Err(refuse("LOG_LEVEL", "fatal, error, warn, info, debug, trace or silent", &log_level));
        }
        let log_json = match env.text_or("LOG_FORMAT", if is_terminal { "pretty" } else { "json" }).as_str() {
            "json" => true,
            "pretty" => false,
            text => return Err(refuse("LOG_FORMAT", "json or pretty", text)),
        };
        let mut warnings = Vec::new();
        let api = ApiSettings::read(&env, require_api_key, &mut warnings)?;
        if api.allow_admin_reset && cells.len() > 1 {
            return Err(SettingsError("ALLOW_ADMIN_RESET cannot be on with more than one cell".to_owned()));
        }
        let trusted_hops = api.trusted_proxies.hops;
        if !require_api_key {
            warnings.extend(open_to_others(host, trusted_hops, api.admin_api_key.is_some()));
        }
        let request_timeout_ms = api.request_timeout.as_millis() as u64;
        let ttl_ms = env.int("IDEMPOTENCY_CACHE_TTL_MS", 86_400_000, 1000..=31_536_000_000)?;
        if ttl_ms < request_timeout_ms {
            warnings.push(format!(
                "IDEMPOTENCY_CACHE_TTL_MS {ttl_ms} is below REQUEST_TIMEOUT_MS {request_timeout_ms}: \
                 a key may expire before its request is answered, and its retry runs again"
            ));
        }
        let ttl_ms = ttl_ms as i64;
        let mut settings = Self {
            host,
            port: port(&env)?,
            database,
            cells,
            data_dir,
            local_postgres,
            pool_max: env.int("DATABASE_POOL_MAX", 16, 2..=1000)? as u32,
            migrate_on_start: env.switch("MIGRATE_ON_START", true)?,
            committer: CommitterSettings::read(&env, api.request_timeout, ttl_ms)?,
            janitor: JanitorSettings::read(&env, ttl_ms)?,
            api,
            verify_interval: env.ms("VERIFY_INTERVAL_MS", Duration::from_hours(24), 0..=31_536_000_000)?,
            webhook_proxy: EgressProxy::read(&env)?,
            http_limits: HttpLimits::read(&env, trusted_hops > 0)?,
            shutdown_grace: env.ms("SHUTDOWN_GRACE_MS", Duration::ZERO, 0..=600_000)?,
            log_level,
            log_json,
            traces: TraceSettings::read(&env)?,
            warnings,
            variables: Vec::new(),
        };
        settings.variables = env.into_variables();
        Ok(settings)
    }
}

/// A warning if API keys are not required and other machines may reach the service.
fn open_to_others(host: IpAddr, trust_proxy: usize, has_admin_key: bool) -> Option<String> {
    let reached = match (host.is_loopback(), trust_proxy) {
        (true, 0) => return None,
        (true, _) => format!("TRUST_PROXY is {trust_proxy}"),
        (false, _) => format!("HOST is {host}"),
    };
    let operator = if has_admin_key { "operator routes need ADMIN_API_KEY" } else { "everybody is the operator" };
    Some(format!(
        "REQUIRE_API_KEY is false and {reached}: anyone who can reach the service can read all data of the public tenant, \
         and write it with a Host that names this machine; {operator}"
    ))
}

/// Connections of the service besides its pool and its lanes: the lane for blocked requests, the runtime configuration,
/// its listener.
const CONNECTIONS_MORE: u32 = 3;

/// Additional connections of the private PostgreSQL, for commands, psql, backups and superusers.
const CONNECTIONS_BESIDE: u32 = 32;

impl Settings {
    /// The number of connections that the private PostgreSQL must allow.
    pub fn local_connections_max(&self) -> u32 {
        self.pool_max + self.committer.lanes as u32 + CONNECTIONS_MORE + CONNECTIONS_BESIDE
    }
}

fn port(env: &Environment<'_>) -> Result<u16, SettingsError> {
    if let Some(text) = env.text("PORT").filter(|text| text.starts_with('0')) {
        return Err(refuse("PORT", "an integer between 1-65535", &text));
    }
    env.int("PORT", 3001, 1..=65_535).map(|port| port as u16)
}

/// The database of DATABASE_URL or of the home cell.
fn database(env: &Environment<'_>, cells: &[CellSettings]) -> Result<Option<PgConnectOptions>, SettingsError> {
    let url = env.secret_url("DATABASE_URL")?;
    match (url, cells.first()) {
        (Some(_), Some(_)) => Err(SettingsError(
            "DATABASE_URL and CELLS_FILE are both set: set one of them, with CELLS_FILE the first cell has the URL"
                .to_owned(),
        )),
        (Some(url), None) => database_url::parse(&url).map(Some),
        (None, home) => Ok(home.map(|home| home.database.clone())),
    }
}

/// An IP address, with or without the brackets of an IPv6 URL, or `localhost`.
fn host(env: &Environment<'_>) -> Result<IpAddr, SettingsError> {
    let text = env.text_or("HOST", "127.0.0.1");
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let in_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let parsed = match in_brackets {
        Some(text) => text.parse().map(IpAddr::V6),
        None => text.parse(),
    };
    parsed.map_err(|_| refuse("HOST", "an IP address or localhost", &text))
}

/// Whether LOCAL_POSTGRES is true. If other machines can reach the service, it is required, so that a missing
/// DATABASE_URL cannot make a production service bill into an empty database.
fn local_postgres(env: &Environment<'_>, is_used: bool, host: IpAddr, data_dir: &Path) -> Result<bool, SettingsError> {
    let is_wanted = env.switch("LOCAL_POSTGRES", false)?;
    let is_refused = env.text("LOCAL_POSTGRES").is_some() && !is_wanted;
    if is_used && is_refused {
        return Err(SettingsError("DATABASE_URL is unset and LOCAL_POSTGRES is off: set DATABASE_URL".to_owned()));
    }
    if is_used && !is_wanted && !host.is_loopback() {
        return Err(SettingsError(format!(
            "HOST {host} is not a loopback address and DATABASE_URL is unset: set DATABASE_URL, or LOCAL_POSTGRES to true to \
             keep the data in DATA_DIR {}",
            data_dir.display()
        )));
    }
    Ok(is_wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let read = |name: &str| pairs.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        Settings::read(read, false).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_serve_on_loopback() {
        let settings = with(&[("PORT", " "), ("HOST", "")]).expect("defaults");
        assert_eq!((settings.port, settings.host.to_string().as_str()), (3001, "127.0.0.1"));
        assert!(settings.database.is_none() && settings.log_json && !settings.api.require_api_key);
    }

    #[test]
    fn a_host_is_an_address_in_any_spelling_or_this_machine() {
        for (text, address) in
            [("localhost", "127.0.0.1"), ("LOCALHOST", "127.0.0.1"), ("[::1]", "::1"), ("::1", "::1")]
        {
            assert_eq!(with(&[("HOST", text)]).expect(text).host.to_string(), address);
        }
        for text in ["[127.0.0.1]", "[::1", "::1]", "[::1]:80", "example.com"] {
            assert!(with(&[("HOST", text)]).is_err(), "{text}");
        }
    }

    #[test]
    fn lenient_settings_are_read_with_a_warning() {
        let settings = with(&[
            ("CORS_ALLOWED_ORIGINS", "https://A.example/, nonsense ,http://b.example:80,"),
            ("ALLOW_ADMIN_RESET", "maybe"),
            ("COMPRESSION", "on"),
        ])
        .expect("settings");
        assert_eq!(settings.api.cors_allowed_origins, ["https://a.example", "http://b.example"]);
        assert!(!settings.api.allow_admin_reset && settings.api.rate_limit);
        assert_eq!(settings.api.compression_threshold_bytes, Some(1024));
        assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
        assert!(with(&[("ALLOW_ADMIN_RESET", "YES")]).expect("settings").api.allow_admin_reset);
        let error = with(&[("CORS_ALLOWED_ORIGINS", "https://a.example,*")]).expect_err("a refusal");
        assert_eq!(error, "CORS_ALLOWED_ORIGINS wildcard is not supported");
    }

    #[test]
    fn timeouts_are_taken_as_they_are() {
        let limits = |pairs| with(pairs).expect("settings").http_limits;
        let ms = |limits: HttpLimits| (limits.head_timeout.as_millis(), limits.keepalive_timeout.as_millis());
        assert_eq!(ms(limits(&[])), (10_000, 75_000));
        assert_eq!(ms(limits(&[("HEADERS_TIMEOUT_MS", "500")])), (500, 75_000));
        assert_eq!(ms(limits(&[("HEADERS_TIMEOUT_MS", "500"), ("KEEPALIVE_TIMEOUT_MS", "400")])), (500, 400));
        let warned = with(&[("IDEMPOTENCY_CACHE_TTL_MS", "1000")]).expect("settings").warnings;
        assert!(warned.iter().any(|warning| warning.contains("REQUEST_TIMEOUT_MS")), "{warned:?}");
    }

    #[test]
    fn behind_a_proxy_only_the_totals_hold() {
        let limits = with(&[("TRUST_PROXY", "1")]).expect("settings").http_limits;
        assert_eq!(limits.connections_per_address_max, limits.connections_max);
        assert_eq!(limits.held_bytes_per_address_max, limits.held_bytes_max);
    }

    #[test]
    fn what_is_not_accepted_is_named() {
        for text in ["0", "65536", "3001.0", "03001", "abc"] {
            let expected = format!("PORT must be an integer between 1-65535, got \"{text}\"");
            assert_eq!(with(&[("PORT", text)]).err(), Some(expected));
        }
        for pairs in [
            [("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "")],
            [("HOST", "0.0.0.0"), ("PORT", "3001")],
            [("MIGRATE_ON_START", "maybe"), ("PORT", "3001")],
            [("LOG_LEVEL", "loud"), ("PORT", "3001")],
            [("COMMIT_LANES", "65"), ("PORT", "3001")],
        ] {
            let error = with(&pairs).expect_err("a refusal");
            assert!(error.contains(pairs[0].0), "{error}");
        }
        let error = with(&[("DATABASE_URL", "mysql://user:secret@host/db")]).expect_err("a refusal");
        assert!(error.contains("DATABASE_URL") && !error.contains("secret"), "{error}");
        let error = with(&[("METRICS_TOKEN", "se cret")]).expect_err("a refusal");
        assert_eq!(error, "METRICS_TOKEN must be visible ASCII characters");
        let error = with(&[("WEBHOOK_PROXY", "socks5://user:secret@proxy")]).expect_err("a refusal");
        assert!(error.contains("WEBHOOK_PROXY") && !error.contains("secret"), "{error}");
        let open = [("HOST", "0.0.0.0"), ("REQUIRE_API_KEY", "false")];
        assert!(with(&[open[0], open[1], ("DATABASE_URL", "postgres://host/db")]).is_ok());
    }

    #[test]
    fn the_private_postgresql_is_used_by_nobody_who_forgot_the_database() {
        let open = [("HOST", "0.0.0.0"), ("REQUIRE_API_KEY", "false")];
        let error = with(&open).expect_err("a refusal");
        assert!(error.contains("DATABASE_URL") && error.contains("LOCAL_POSTGRES"), "{error}");
        assert!(with(&[open[0], open[1], ("LOCAL_POSTGRES", "true")]).is_ok());
        let error = with(&[("LOCAL_POSTGRES", "false")]).expect_err("a refusal");
        assert!(error.contains("DATABASE_URL") && error.contains("LOCAL_POSTGRES"), "{error}");
        assert!(with(&[("LOCAL_POSTGRES", "false"), ("DATABASE_URL", "postgres://host/db")]).is_ok());
    }

    /// The rows of the tables in docs/configuration.md: each variable and its default.
    fn documented() -> Vec<(&'static str, &'static str)> {
        let rows = include_str!("../../docs/configuration.md").lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.filter_map(|row| row.split_once("` | "));
        rows.map(|(name, rest)| (name, rest.split(" |").next().unwrap_or_default())).collect()
    }

    #[test]
    fn the_configuration_page_lists_every_variable_with_its_default() {
        let settings = with(&[]).expect("defaults");
        let mut documented = documented();
        for Variable { name, value, source } in &settings.variables {
            let place = documented.iter().position(|(own, _)| own == name).expect(name);
            let (_, default) = documented.remove(place);
            let shown = match default {
                "unset" | "empty" => None,
                "on" => Some("true"),
                "off" => Some("false"),
                default => Some(default),
            };
            let value = value.as_deref().filter(|value| !(default == "unset" && *value == "false"));
            assert_eq!((value, *source), (shown, variable::Source::Default), "{name}");
        }
        // The other settings of traces are read only where there are any.
        documented.retain(|(name, _)| !name.starts_with("OTEL_"));
        assert_eq!(documented, []);
    }

    #[test]
    fn variables_show_what_is_in_force_without_secrets() {
        let settings = with(&[
            ("DATABASE_URL", "postgres://u:hunter2@h/db"),
            ("ADMIN_API_KEY", "hunter2"),
            ("TRUST_PROXY", "yes"),
            ("PORT", " 80 "),
            ("RATE_LIMIT", ""),
        ])
        .expect("settings");
        let shown = |name: &str| {
            let variable = settings.variables.iter().find(|variable| variable.name == name).expect(name);
            (variable.value.as_deref(), variable.source)
        };
        use variable::Source::{Default, Environment};
        assert_eq!(shown("DATABASE_URL"), (Some("postgres://u:***@h/db"), Environment));
        assert_eq!(shown("ADMIN_API_KEY"), (Some("***"), Environment));
        assert_eq!(shown("TRUST_PROXY"), (Some("yes"), Environment));
        assert_eq!(shown("PORT"), (Some("80"), Environment));
        assert_eq!(shown("RATE_LIMIT"), (Some("true"), Default));
        assert_eq!(shown("METRICS_TOKEN"), (None, Default));
        assert!(!format!("{:?}", settings.variables).contains("hunter2"));
    }
}
