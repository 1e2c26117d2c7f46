//! Where traces go and which requests are recorded: the variables of the OpenTelemetry specification.

use std::collections::HashMap;
use std::time::Duration;

use url::Url;

use super::environment::{Environment, refuse};
use super::error::SettingsError;

/// How traces are recorded and exported.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// The URL that spans are posted to.
    pub endpoint: Url,
    /// Headers of each export, percent-encoded.
    pub headers: HashMap<String, String>,
    /// How long an export may take.
    pub timeout: Duration,
    /// `service.name` of the spans. None: that of OTEL_RESOURCE_ATTRIBUTES, or the default.
    pub service_name: Option<String>,
    /// The share of traces that are recorded.
    pub ratio: f64,
    /// Whether a request that belongs to a trace is recorded if its caller records it, whatever `ratio` is.
    pub follows_parent: bool,
    /// Most spans that wait to be exported.
    pub queue_max: usize,
}

impl TraceSettings {
    /// None: no endpoint is set, and nothing is recorded.
    pub(super) fn read(env: &Environment<'_>) -> Result<Option<Self>, SettingsError> {
        let Some(endpoint) = endpoint(env)? else { return Ok(None) };
        for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
            if let Some(protocol) = env.text(name).filter(|protocol| protocol != "http/protobuf") {
                return Err(refuse(name, "http/protobuf", &protocol));
            }
        }
        let (ratio, follows_parent) = sampler(env)?;
        let timeout = env.ms("OTEL_EXPORTER_OTLP_TIMEOUT", Duration::from_secs(10), 1..=3_600_000)?;
        Ok(Some(Self {
            endpoint,
            headers: headers(env)?,
            timeout: env.ms("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", timeout, 1..=3_600_000)?,
            service_name: env.text("OTEL_SERVICE_NAME"),
            ratio,
            follows_parent,
            queue_max: env.int("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1..=1_000_000)? as usize,
        }))
    }
}

/// The general one is a base URL, the one for traces is complete.
fn endpoint(env: &Environment<'_>) -> Result<Option<Url>, SettingsError> {
    let (of_traces, general) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
    let complete = env.text(of_traces);
    let name = if complete.is_some() { of_traces } else { general };
    let is_base = complete.is_none();
    let Some(text) = complete.or_else(|| env.text(general)) else { return Ok(None) };
    // Exports would leave out a user and a password.
    let is_plain = |url: &Url| url.has_host() && url.username().is_empty() && url.password().is_none();
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && is_plain(url));
    // It may hold a password, so it is not repeated.
    let mut url =
        url.ok_or_else(|| SettingsError(format!("{name} must be a URL without user and password: http://host:4318")))?;
    if is_base {
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    }
    Ok(Some(url))
}

/// Pairs `name=value`, separated by commas. They may hold a token, so they are not repeated.
fn headers(env: &Environment<'_>) -> Result<HashMap<String, String>, SettingsError> {
    let text = env.secret("OTEL_EXPORTER_OTLP_HEADERS")?.unwrap_or_default();
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        (!name.is_empty() && !value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    let pairs = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let refused = || SettingsError("OTEL_EXPORTER_OTLP_HEADERS must be name=value, separated by commas".to_owned());
    pairs.map(pair).collect::<Option<_>>().ok_or_else(refused)
}

fn sampler(env: &Environment<'_>) -> Result<(f64, bool), SettingsError> {
    let text = env.text("OTEL_TRACES_SAMPLER").unwrap_or("parentbased_always_on".to_owned());
    let (root, follows_parent) = match text.strip_prefix("parentbased_") {
        Some(root) => (root, true),
        None => (text.as_str(), false),
    };
    let ratio = match root {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => ratio(env)?,
        _ => {
            let accepted = "always_on, always_off or traceidratio, with or without parentbased_ in front";
            return Err(refuse("OTEL_TRACES_SAMPLER", accepted, &text));
        }
    };
    Ok((ratio, follows_parent))
}

fn ratio(env: &Environment<'_>) -> Result<f64, SettingsError> {
    let Some(text) = env.text("OTEL_TRACES_SAMPLER_ARG") else { return Ok(1.0) };
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| refuse("OTEL_TRACES_SAMPLER_ARG", "a number between 0 and 1", &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Option<TraceSettings>, String> {
        let find = |name: &str| pairs.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        TraceSettings::read(&Environment::of(&find)).map_err(|error| error.to_string())
    }

    fn on(pairs: &[(&str, &str)]) -> TraceSettings {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        with(&[&[endpoint], pairs].concat()).expect("settings").expect("an endpoint")
    }

    #[test]
    fn nothing_is_recorded_without_an_endpoint() {
        assert_eq!(with(&[("OTEL_TRACES_SAMPLER", "always_on"), ("OTEL_SERVICE_NAME", "billing")]), Ok(None));
    }

    #[test]
    fn the_general_endpoint_is_a_base_and_that_of_traces_is_complete() {
        for base in ["http://collector:4318", "http://collector:4318/"] {
            let settings = with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", base)]).expect("settings").expect("an endpoint");
            assert_eq!(settings.endpoint.as_str(), "http://collector:4318/v1/traces");
        }
        let both = on(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/spans")]);
        assert_eq!(both.endpoint.as_str(), "https://other/spans");
        for text in ["collector:4318", "grpc://collector:4317", "http://", "http://user:password@collector:4318"] {
            let error = with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", text)]).expect_err(text);
            assert_eq!(error, "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL without user and password: http://host:4318");
        }
        let grpc = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        let error = with(&grpc).expect_err("a refusal");
        assert_eq!(error, "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, got \"grpc\"");
    }

    #[test]
    fn headers_are_pairs_and_never_repeated() {
        let headers = on(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2, x-tenant = a=b,")]).headers;
        let expected = [("authorization", "Bearer%20hunter2"), ("x-tenant", "a=b")];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let pairs = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2")];
        let error = with(&pairs).expect_err("a refusal");
        assert_eq!(error, "OTEL_EXPORTER_OTLP_HEADERS must be name=value, separated by commas");
    }

    #[test]
    fn samplers_are_those_of_the_specification() {
        let sampler = |pairs: &[(&str, &str)]| {
            let TraceSettings { ratio, follows_parent, .. } = on(pairs);
            (ratio, follows_parent)
        };
        assert_eq!(sampler(&[]), (1.0, true));
        assert_eq!(sampler(&[("OTEL_TRACES_SAMPLER", "always_off")]), (0.0, false));
        let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        assert_eq!(sampler(&[ratio]), (1.0, true));
        assert_eq!(sampler(&[ratio, ("OTEL_TRACES_SAMPLER_ARG", "0.01")]), (0.01, true));
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
        for pairs in
            [[endpoint, ratio, ("OTEL_TRACES_SAMPLER_ARG", "1.1")], [endpoint, ratio, ("OTEL_TRACES_SAMPLER_ARG", "x")]]
        {
            assert!(with(&pairs).expect_err("a refusal").starts_with("OTEL_TRACES_SAMPLER_ARG must be"));
        }
        let error = with(&[endpoint, ("OTEL_TRACES_SAMPLER", "jaeger_remote")]).expect_err("a refusal");
        assert!(error.starts_with("OTEL_TRACES_SAMPLER must be"), "{error}");
    }
}
