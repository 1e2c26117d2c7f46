//! One attempt: signs a delivery and sends it. Without an egress proxy it connects only to public addresses, which it
//! checks after name resolution. It follows no redirects, and reads only the head of a response.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Proxy, redirect};
use tokio::time::Instant;
use url::{Host, Url};

use crate::domain::delivery::{self, RETRY_AFTER_MAX_MS};
use crate::domain::event::event_id;
use crate::domain::target;
use crate::domain::timestamp::Timestamp;
use crate::domain::trace_context::TraceContext;
use crate::domain::webhook::{Secret, signatures};
use crate::settings::egress_proxy::EgressProxy;
use crate::store::delivery_queue::Outgoing;
use crate::telemetry::traces::{Delivery, DeliveryTrace};
use crate::tls;

const USER_AGENT: &str = concat!("agentpay-billing/", env!("CARGO_PKG_VERSION"));

/// How host names are resolved.
#[derive(Clone, Debug)]
pub enum Names {
    System,
    /// For tests: the result of a name server that an attacker may control.
    Fixed(BTreeMap<String, IpAddr>),
}

impl Names {
    /// The port is 0; the connector replaces it with that of the URL.
    async fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, 0)).await?.collect()),
            Self::Fixed(names) => Ok(names.get(name).map(|address| (*address, 0).into()).into_iter().collect()),
        }
    }
}

/// Why an attempt failed. The text is shown to the owner of the webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("status {status}")]
    Status {
        status: u16,
        /// The pause that the receiver requests; 0 if it requests none.
        retry_after_ms: i64,
    },
    #[error("timeout")]
    Timeout,
    #[error("connection failed")]
    Connection,
    #[error("private address")]
    PrivateAddress,
    /// It is not sent, because it would be unsigned.
    #[error("signing secret unavailable")]
    Secret,
}

/// Where a delivery is sent, and what signs it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: String,
    /// The current secret and, during an overlap, the one before it.
    pub secrets: Vec<Secret>,
}

/// Where deliveries may be sent, and how.
#[derive(Clone, Debug)]
pub struct Egress {
    /// Also allow addresses outside the public internet.
    pub allow_private: bool,
    pub names: Names,
    pub proxy: Option<EgressProxy>,
}

/// Sends deliveries. All clones share the TLS configuration.
#[derive(Clone, Debug)]
pub struct Sender {
    client: Client,
    egress: Egress,
}

impl Sender {
    pub fn new(egress: Egress) -> Self {
        // Behind a proxy the client resolves only the proxy's name, which the operator chose.
        let allow_private = egress.allow_private || egress.proxy.is_some();
        let mut client = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            // The proxy variables of the environment are ignored: a proxy would bypass the check of addresses.
            .no_proxy()
            .http1_only()
            // A pooled connection would use an address that was checked long ago.
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(GuardedResolver { allow_private, names: egress.names.clone() }))
            .tls_backend_preconfigured(tls::client_config());
        if let Some(proxy) = &egress.proxy {
            client = client.proxy(Proxy::all(proxy.url().clone()).expect("a URL with a host"));
        }
        Self { client: client.build().expect("the settings of the client are constant"), egress }
    }

    /// Makes one attempt within `limit`. Returns the receiver's status if it accepted the delivery.
    pub async fn send(
        &self,
        outgoing: &Outgoing,
        endpoint: &Endpoint,
        now: Timestamp,
        limit: Duration,
    ) -> Result<u16, Failure> {
        let Ok(url) = Url::parse(&endpoint.url) else { return Err(Failure::Connection) };
        let Some(trace) = DeliveryTrace::begin(outgoing.trace.as_ref()) else {
            return self.post(url, outgoing, endpoint, now, limit, None).await;
        };
        let result = self.post(url.clone(), outgoing, endpoint, now, limit, Some(trace.context())).await;
        let delivery = Delivery {
            webhook_id: &outgoing.queue.webhook,
            delivery_id: &outgoing.id,
            event_type: &outgoing.event_type,
            host: url.host_str(),
            port: url.port_or_known_default(),
            attempts: outgoing.attempts,
        };
        let (status, error) = match result {
            Ok(status) => (Some(status), None),
            Err(Failure::Status { status, .. }) => (Some(status), Some(status.to_string())),
            Err(failure) => (None, Some(failure.to_string())),
        };
        trace.end(&delivery, status, error);
        result
    }

    async fn post(
        &self,
        url: Url,
        outgoing: &Outgoing,
        endpoint: &Endpoint,
        now: Timestamp,
        limit: Duration,
        trace: Option<TraceContext>,
    ) -> Result<u16, Failure> {
        if endpoint.secrets.is_empty() {
            return Err(Failure::Secret);
        }
        let began = Instant::now();
        let check = self.check_target(&url);
        tokio::time::timeout(limit, check).await.unwrap_or(Err(Failure::Timeout))?;
        let event = event_id(outgoing.recorded_at, outgoing.position);
        let body = delivery::body(event, &outgoing.event_type, outgoing.recorded_at, &outgoing.payload);
        let body = body.ok_or(Failure::Connection)?;
        let timestamp_seconds = now.as_ms().div_euclid(1000);
        let mut request = self
            .client
            .post(url)
            .timeout(limit.saturating_sub(began.elapsed()))
            .header("content-type", "application/json")
            .header("webhook-id", &outgoing.id)
            .header("webhook-timestamp", timestamp_seconds)
            .header("webhook-signature", signatures(&endpoint.secrets, &outgoing.id, timestamp_seconds, &body))
            .body(body);
        if let Some(TraceContext { traceparent, tracestate }) = trace {
            request = request.header("traceparent", traceparent);
            if let Some(tracestate) = tracestate {
                request = request.header("tracestate", tracestate);
            }
        }
        let answer = request.send().await.map_err(|error| cause_of(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(status.as_u16());
        }
        let now = now.plus_ms(began.elapsed().as_millis() as i64);
        Err(Failure::Status { status: status.as_u16(), retry_after_ms: retry_after_ms(answer.headers(), now) })
    }

    /// Checks what the resolver does not see: literal addresses and, behind a proxy, every name. The proxy resolves
    /// names itself, so a name that is unknown here is left to it.
    async fn check_target(&self, url: &Url) -> Result<(), Failure> {
        let host = url.host().ok_or(Failure::Connection)?;
        if self.egress.allow_private {
            return Ok(());
        }
        if !target::is_public_host(&host) {
            return Err(Failure::PrivateAddress);
        }
        match host {
            Host::Domain(name) if self.egress.proxy.is_some() => {
                let found = self.egress.names.look_up(name).await.unwrap_or_default();
                let is_private = !found.is_empty() && !found.iter().any(|address| target::is_public(address.ip()));
                if is_private { Err(Failure::PrivateAddress) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3) in seconds or as a date. At most [`RETRY_AFTER_MAX_MS`]; 0 if it is
/// neither.
fn retry_after_ms(headers: &HeaderMap, now: Timestamp) -> i64 {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    let is_digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let ms = if is_digits {
        // A number with too many digits is a long pause.
        value.parse().unwrap_or(i64::MAX).saturating_mul(1000)
    } else {
        let since_epoch = |date: SystemTime| date.duration_since(UNIX_EPOCH).ok();
        let date_ms = httpdate::parse_http_date(value).ok().and_then(since_epoch).map(|date| date.as_millis() as i64);
        date_ms.map_or(0, |date_ms| date_ms.saturating_sub(now.as_ms()))
    };
    ms.clamp(0, RETRY_AFTER_MAX_MS)
}

fn cause_of(error: &reqwest::Error) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<PrivateAddress>() {
            return Failure::PrivateAddress;
        }
        cause = inner.source();
    }
    if error.is_timeout() { Failure::Timeout } else { Failure::Connection }
}

#[derive(Debug, thiserror::Error)]
#[error("every address of this name is private")]
struct PrivateAddress;

/// Resolves names, and returns only addresses that may be connected to.
struct GuardedResolver {
    allow_private: bool,
    names: Names,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow_private, names) = (self.allow_private, self.names.clone());
        Box::pin(async move {
            let found = names.look_up(name.as_str()).await?;
            let had_some = !found.is_empty();
            let allowed: Vec<SocketAddr> =
                found.into_iter().filter(|address| allow_private || target::is_public(address.ip())).collect();
            if allowed.is_empty() && had_some {
                return Err(PrivateAddress.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_day() {
        let now = Timestamp::from_ms(784_111_777_000);
        let ms = |value: &str| retry_after_ms(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().expect(value))]), now);
        for (value, expected) in [
            ("120", 120_000),
            (" 7 ", 7000),
            ("0", 0),
            ("86401", RETRY_AFTER_MAX_MS),
            ("99999999999999999999999", RETRY_AFTER_MAX_MS),
            ("Sun, 06 Nov 1994 08:51:37 GMT", 120_000),
            ("Sun, 06 Nov 1994 08:49:36 GMT", 0),
            ("Sun, 06 Nov 2044 08:51:37 GMT", RETRY_AFTER_MAX_MS),
            ("-1", 0),
            ("1.5", 0),
            ("soon", 0),
            ("", 0),
        ] {
            assert_eq!(ms(value), expected, "{value}");
        }
        assert_eq!(retry_after_ms(&HeaderMap::new(), now), 0);
    }
}
