//! One attempt: signs a delivery and sends it. It connects to public addresses only, checked after DNS and for every
//! attempt anew, follows no redirect, uses no proxy, and reads nothing of an answer but its head.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, redirect};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;
use url::Url;

use crate::domain::delivery;
use crate::domain::event::event_id;
use crate::domain::target;
use crate::domain::timestamp::Timestamp;
use crate::store::deliveries::Leased;
use crate::store::webhooks::Target;

/// How long a receiver may take.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

const USER_AGENT: &str = concat!("agentpay-billing/", env!("CARGO_PKG_VERSION"));

/// Where host names are looked up.
#[derive(Clone, Debug)]
pub enum Names {
    System,
    /// For tests: what a name server says that its owner may have set up to deceive.
    Fixed(BTreeMap<String, IpAddr>),
}

/// Why an attempt failed. Its text is shown to the webhook's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("status {0}")]
    Status(u16),
    #[error("timeout")]
    Timeout,
    #[error("connection failed")]
    Connection,
    #[error("private address")]
    PrivateAddress,
}

/// Sends deliveries. All clones share their TLS setup.
#[derive(Clone, Debug)]
pub struct Sender {
    client: Client,
    allow_private: bool,
}

impl Sender {
    /// `allow_private`: also to addresses that are not of the public internet.
    pub fn new(allow_private: bool, names: Names) -> Self {
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .http1_only()
            // A kept connection would be an address checked long ago.
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(GuardedResolver { allow_private, names }))
            .tls_backend_preconfigured(tls())
            .build()
            .expect("the settings of the client are constant");
        Self { client, allow_private }
    }

    /// One attempt, of at most `limit`. The receiver's status if it took the delivery.
    pub async fn send(
        &self,
        leased: &Leased,
        target: &Target,
        now: Timestamp,
        limit: Duration,
    ) -> Result<u16, Failure> {
        let url = Url::parse(&target.url).map_err(|_| Failure::Connection)?;
        // Addresses written out are never looked up, so the resolver does not see them.
        let is_public = url.host().is_some_and(|host| target::is_public_host(&host));
        if !is_public && !self.allow_private {
            return Err(Failure::PrivateAddress);
        }
        let event = event_id(leased.recorded_at, leased.position);
        let body = delivery::body(event, &leased.event_type, leased.recorded_at, &leased.payload);
        let body = body.ok_or(Failure::Connection)?;
        let timestamp_seconds = now.as_ms().div_euclid(1000);
        let answer = self
            .client
            .post(url)
            .timeout(limit)
            .header("content-type", "application/json")
            .header("webhook-id", &leased.delivery)
            .header("webhook-timestamp", timestamp_seconds)
            .header("webhook-signature", target.secret.sign(&leased.delivery, timestamp_seconds, &body))
            .body(body)
            .send()
            .await
            .map_err(|error| cause_of(&error))?;
        let status = answer.status();
        if status.is_success() { Ok(status.as_u16()) } else { Err(Failure::Status(status.as_u16())) }
    }
}

/// The machine's own roots. Without any, only plain HTTP works.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    if roots.add_parsable_certificates(found.certs).0 == 0 {
        warn!("this machine has no root certificates: webhooks with https URLs cannot be delivered");
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
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

/// Looks names up, and gives the connector only addresses it may connect to.
struct GuardedResolver {
    allow_private: bool,
    names: Names,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow_private, names) = (self.allow_private, self.names.clone());
        Box::pin(async move {
            let found: Vec<SocketAddr> = match names {
                // The connector puts the port of the URL in.
                Names::System => tokio::net::lookup_host((name.as_str(), 0)).await?.collect(),
                Names::Fixed(names) => {
                    names.get(name.as_str()).map(|address| (*address, 0).into()).into_iter().collect()
                }
            };
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
