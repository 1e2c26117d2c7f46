//! Who is asking: the client's address, its API key's tenant, and whether it is the operator. And what they may.

use std::net::IpAddr;
use std::time::Instant;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Uri};
use subtle::ConstantTimeEq;

use crate::domain::caller::{Caller, ClientAddress, Tenant};
use crate::domain::identifiers::hash_of_key;
use crate::domain::refusal::Refusal;
use crate::settings::api::ApiSettings;

use crate::api::request::forwarded::{self, Doubt};
use crate::api::request::keyless;
use crate::api::request::known_keys::Presented;
use crate::api::route::{Auth, Route};
use crate::api::state::ApiState;

#[derive(Clone, Debug)]
pub struct Identity {
    pub tenant: Tenant,
    pub caller: Caller,
    pub address: ClientAddress,
    pub is_operator: bool,
    pub has_key: bool,
    /// Its key was not looked up, because its address asks too much: it must not be taken for a request without one.
    pub is_unidentified: bool,
    /// It may read metrics with the token it sent.
    pub has_metrics_token: bool,
    /// Keys are not required, and it comes from elsewhere than this machine.
    pub is_foreign: bool,
}

/// Looks the caller up. An API key that cannot be looked up is a refusal, except where the route needs no database.
pub async fn identify(
    state: &ApiState,
    (uri, headers): (&Uri, &HeaderMap),
    peer: IpAddr,
    route: Option<&Route>,
    deadline: Instant,
) -> Result<Identity, Refusal> {
    let settings = &state.settings;
    let address = address_of(headers, peer, route, settings);
    let is_foreign = !settings.require_api_key && keyless::is_foreign(uri, headers, &settings.cors_allowed_origins);
    let anonymous = Identity {
        tenant: Tenant::public(),
        caller: Caller::Address(address.clone()),
        address,
        is_operator: false,
        has_key: false,
        is_unidentified: false,
        has_metrics_token: has_metrics_token(headers, settings),
        is_foreign,
    };
    let mut values = headers.get_all("x-api-key").iter();
    let presented = match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() => hash_of_key(value.as_bytes()),
        // Sent more than once it is never recognised.
        (Some(_), Some(_)) => return Ok(anonymous),
        (None | Some(_), None) | (None, Some(_)) => {
            let is_open = !settings.require_api_key && settings.admin_api_key.is_none();
            return Ok(Identity { is_operator: is_open && !is_foreign, ..anonymous });
        }
    };
    if settings.admin_api_key.as_ref().is_some_and(|admin| is_secret(admin, &presented)) {
        return Ok(Identity { is_operator: !is_foreign, ..anonymous });
    }
    if route.is_some_and(|route| !route.needs_tenant()) {
        return Ok(anonymous);
    }
    match state.known_keys.look_up(presented, &anonymous.caller, deadline).await {
        Ok(Presented::Recognised(tenant)) => {
            let caller = Caller::Tenant(tenant.clone());
            Ok(Identity { tenant, caller, has_key: true, ..anonymous })
        }
        Ok(Presented::Unknown) => Ok(anonymous),
        Ok(Presented::NotLookedUp) => Ok(Identity { is_unidentified: true, ..anonymous }),
        Err(_) if route.is_some_and(|route| route.needs_no_database) => Ok(anonymous),
        Err(refusal) => Err(refusal),
    }
}

/// Whether the route is open to this caller.
pub fn authorise(route: &Route, identity: &Identity, settings: &ApiSettings) -> Result<(), Refusal> {
    let is_write = route.method != "GET";
    if identity.is_foreign && (is_write || route.auth == Auth::Operator) {
        return Err(Refusal::Foreign);
    }
    let guards_metrics = settings.require_api_key || settings.metrics_token.is_some();
    match route.auth {
        Auth::Operator if !identity.is_operator && is_write => Err(Refusal::AdminKeyForWrites),
        Auth::Operator if !identity.is_operator => Err(Refusal::AdminKeyForReads),
        Auth::Tenant if settings.require_api_key && !identity.has_key => Err(Refusal::ApiKeyForWrites),
        Auth::Metrics if guards_metrics && !identity.is_operator && !identity.has_metrics_token => {
            Err(Refusal::KeyForMetrics)
        }
        _ => Ok(()),
    }
}

fn address_of(headers: &HeaderMap, peer: IpAddr, route: Option<&Route>, settings: &ApiSettings) -> ClientAddress {
    let (address, doubt) = forwarded::client_address(headers, peer, settings.trusted_proxies);
    match doubt {
        // Probes and scrapes go past the proxies. It matters who writes.
        Some(Doubt::Missing | Doubt::Short) if route.is_none_or(|route| route.auth != Auth::Tenant) => {}
        Some(doubt) => forwarded::complain(doubt, &address),
        None => {}
    }
    address
}

/// `Authorization: Bearer` with the token, once.
fn has_metrics_token(headers: &HeaderMap, settings: &ApiSettings) -> bool {
    let Some(token) = &settings.metrics_token else { return false };
    let mut values = headers.get_all(AUTHORIZATION).iter().map(|value| value.as_bytes());
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let presented = match value.split_at_checked("Bearer ".len()) {
        Some((scheme, presented)) if scheme.eq_ignore_ascii_case(b"Bearer ") => presented.trim_ascii(),
        _ => return false,
    };
    is_secret(token, &hash_of_key(presented))
}

/// In constant time.
fn is_secret(secret: &str, presented: &[u8; 32]) -> bool {
    hash_of_key(secret.as_bytes()).ct_eq(presented).into()
}
