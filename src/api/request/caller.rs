//! Who sends a request: the client's address, the tenant of its API key, and whether it is the operator. Also decides
//! what that caller may access.

use std::net::IpAddr;
use std::time::Instant;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use crate::domain::api_key::Scopes;
use crate::domain::audit_log::{Actor, Origin};
use crate::domain::caller::{Caller, ClientAddress, Tenant};
use crate::domain::identifiers::hash_of_key;
use crate::domain::refusal::Refusal;
use crate::query::tenants;
use crate::settings::api::ApiSettings;
use crate::store::api_keys::KnownKey;

use crate::api::http::header_names::{X_API_KEY, X_TENANT_ID};
use crate::api::request::forwarded::{self, Doubt};
use crate::api::request::known_keys::Presented;
use crate::api::route::{Auth, Route};
use crate::api::state::{ApiState, HOME};

#[derive(Clone, Debug)]
pub struct Identity {
    pub tenant: Tenant,
    /// The index of the tenant's cell.
    pub cell: usize,
    pub caller: Caller,
    pub address: ClientAddress,
    pub actor: Actor,
    /// The hash of its API key, if that is recognised.
    pub key_hash: Option<[u8; 32]>,
    /// What its API key may be used for. `None`: everything that the tenant may do.
    pub scopes: Option<Scopes>,
    /// The limit of its API key, beside that of the tenant.
    pub rate_limit_per_window: Option<i64>,
    pub is_operator: bool,
    /// It names a tenant whose data the request is about. Only the operator may.
    pub names_tenant: bool,
    /// It is the operator, and acts for the tenant that it named.
    pub acts_for_tenant: bool,
    /// Its API key was not looked up, because its address has no quota left. It must not be treated as a request
    /// without a key.
    pub is_unidentified: bool,
    /// It may read metrics with the token that it sent.
    pub has_metrics_token: bool,
    /// API keys are not required, and the request does not come from this machine (HTTP contract, section 3.3).
    pub is_foreign: bool,
}

impl Identity {
    /// Whether its API key is recognised.
    pub fn has_key(&self) -> bool {
        matches!(self.actor, Actor::ApiKey(_))
    }

    /// Whether sums are those of all tenants.
    pub fn sees_all_tenants(&self) -> bool {
        self.is_operator && !self.acts_for_tenant
    }

    /// Where its changes come from.
    pub fn origin(&self) -> Origin {
        Origin { actor: self.actor, address: Some(self.address.clone()) }
    }
}

/// Identifies the caller. An API key that cannot be looked up is refused, unless the route needs no database.
pub async fn identify(
    state: &ApiState,
    headers: &HeaderMap,
    peer: IpAddr,
    is_foreign: bool,
    route: Option<&Route>,
    deadline: Instant,
) -> Result<Identity, Refusal> {
    let settings = &state.settings;
    let address = address_of(headers, peer, route, settings);
    let anonymous = Identity {
        tenant: Tenant::public(),
        cell: HOME,
        caller: Caller::Address(address.clone()),
        address,
        actor: Actor::Anonymous,
        key_hash: None,
        scopes: None,
        rate_limit_per_window: None,
        is_operator: false,
        names_tenant: names_tenant(headers, route),
        acts_for_tenant: false,
        is_unidentified: false,
        has_metrics_token: has_metrics_token(headers, settings),
        is_foreign,
    };
    let mut values = headers.get_all(X_API_KEY).iter();
    let presented = match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() => hash_of_key(value.as_bytes()),
        // A key that is sent more than once is never recognised.
        (Some(_), Some(_)) => return Ok(anonymous),
        (None | Some(_), None) | (None, Some(_)) => {
            let is_open = !settings.require_api_key && settings.admin_api_key.is_none();
            let identity = Identity { is_operator: is_open && !is_foreign, ..anonymous };
            return operator(state, headers, deadline, identity).await;
        }
    };
    if settings.admin_api_key.as_ref().is_some_and(|admin| is_secret(admin, &presented)) {
        let identity = Identity { actor: Actor::Admin, is_operator: !is_foreign, ..anonymous };
        return operator(state, headers, deadline, identity).await;
    }
    if route.is_some_and(|route| !route.needs_tenant()) {
        return Ok(anonymous);
    }
    match state.known_keys.look_up(presented, &anonymous.caller, deadline).await {
        Ok(Presented::Recognised(KnownKey { prefix, tenant, cell, scopes, rate_limit_per_window, .. })) => {
            let cell = state.cell_index(cell.as_ref())?;
            let caller = Caller::Tenant(tenant.clone());
            let (actor, key_hash) = (Actor::ApiKey(prefix), Some(presented));
            Ok(Identity { tenant, cell, caller, actor, key_hash, scopes, rate_limit_per_window, ..anonymous })
        }
        Ok(Presented::Unknown) => Ok(anonymous),
        Ok(Presented::NotLookedUp) => Ok(Identity { is_unidentified: true, ..anonymous }),
        Err(_) if route.is_some_and(|route| route.needs_no_database) => Ok(anonymous),
        Err(refusal) => Err(refusal),
    }
}

/// Whether the request has a tenant in `X-Tenant-Id`, on a route that uses a tenant.
fn names_tenant(headers: &HeaderMap, route: Option<&Route>) -> bool {
    let is_named = headers.get_all(X_TENANT_ID).iter().any(|value| !value.is_empty());
    is_named && route.is_some_and(Route::uses_tenant)
}

/// The operator acts for the tenant that it names, if it names one. It uses the tenant's idempotency keys, but
/// the quota of its own address.
async fn operator(
    state: &ApiState,
    headers: &HeaderMap,
    deadline: Instant,
    identity: Identity,
) -> Result<Identity, Refusal> {
    if !identity.is_operator || !identity.names_tenant {
        return Ok(identity);
    }
    let mut values = headers.get_all(X_TENANT_ID).iter();
    let tenant = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Refusal::TenantId)?.to_owned(),
        _ => return Err(Refusal::TenantId),
    };
    let tenant = Tenant::from_stored(tenant);
    // Boxed, because it is rare: the state of every request would have room for it.
    match Box::pin(tenants::find(&state.home().reader, &tenant, deadline)).await? {
        Some(resident) => {
            let cell = state.cell_index(resident.cell.as_ref())?;
            Ok(Identity { tenant, cell, acts_for_tenant: true, ..identity })
        }
        None => Err(Refusal::TenantNotFound(tenant.to_string())),
    }
}

/// Refuses the request unless this caller may use the route.
pub fn authorise(route: &Route, identity: &Identity, settings: &ApiSettings) -> Result<(), Refusal> {
    let is_write = route.method != "GET";
    if identity.is_foreign && (is_write || route.auth == Auth::Operator) {
        return Err(Refusal::Foreign);
    }
    // A mistyped admin key must not make the request one of the tenant `public`.
    if identity.names_tenant && !identity.is_operator {
        return Err(if is_write { Refusal::AdminKeyForWrites } else { Refusal::AdminKeyForReads });
    }
    if identity.acts_for_tenant && route.of_tenant_only {
        return Err(Refusal::OperatorMeters);
    }
    let guards_metrics = settings.require_api_key || settings.metrics_token.is_some();
    match route.auth {
        Auth::Operator if !identity.is_operator && is_write => Err(Refusal::AdminKeyForWrites),
        Auth::Operator if !identity.is_operator => Err(Refusal::AdminKeyForReads),
        Auth::Tenant if settings.require_api_key && !identity.has_key() && !identity.acts_for_tenant => {
            Err(Refusal::ApiKeyForWrites)
        }
        Auth::Metrics if guards_metrics && !identity.is_operator && !identity.has_metrics_token => {
            Err(Refusal::KeyForMetrics)
        }
        _ if identity.scopes.is_some_and(|scopes| !scopes.permit(route.scopes)) => {
            Err(Refusal::MissingScope(route.scopes))
        }
        _ => Ok(()),
    }
}

fn address_of(headers: &HeaderMap, peer: IpAddr, route: Option<&Route>, settings: &ApiSettings) -> ClientAddress {
    let (address, doubt) = forwarded::client_address(headers, peer, settings.trusted_proxies);
    match doubt {
        // Probes and scrapes bypass the proxies. Only writes need to know their caller.
        Some(Doubt::Missing | Doubt::Short) if route.is_none_or(|route| route.auth != Auth::Tenant) => {}
        Some(doubt) => forwarded::report(doubt, &address),
        None => {}
    }
    address
}

/// Whether there is exactly one `Authorization: Bearer` with the token.
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

/// Compares in constant time.
fn is_secret(secret: &str, presented: &[u8; 32]) -> bool {
    hash_of_key(secret.as_bytes()).ct_eq(presented).into()
}
