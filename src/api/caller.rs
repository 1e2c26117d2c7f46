//! Who is asking: the client's address, its API key's tenant, and whether it is the operator.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use subtle::ConstantTimeEq;

use crate::domain::caller::{Caller, ClientAddress, Tenant};
use crate::domain::identifiers::hash_of_key;
use crate::domain::refusal::Refusal;

use super::routes::{Auth, Route};
use super::state::ApiState;

#[derive(Clone, Debug)]
pub struct Identity {
    pub tenant: Tenant,
    pub caller: Caller,
    pub address: ClientAddress,
    pub is_operator: bool,
    pub has_key: bool,
}

/// Looks the caller up. An API key that cannot be looked up is a refusal, except where the route works alone.
pub async fn identify(
    state: &ApiState,
    headers: &HeaderMap,
    peer: SocketAddr,
    route: Option<&Route>,
) -> Result<Identity, Refusal> {
    let address = client_address(headers, peer.ip(), state.settings.trust_proxy);
    let anonymous = |is_operator| Identity {
        tenant: Tenant::public(),
        caller: Caller::Address(address),
        address,
        is_operator,
        has_key: false,
    };
    let mut values = headers.get_all("x-api-key").iter();
    let presented = match (values.next(), values.next()) {
        (None, _) => return Ok(anonymous(!state.settings.require_api_key)),
        (Some(value), None) if value.is_empty() => return Ok(anonymous(!state.settings.require_api_key)),
        (Some(value), None) => value.as_bytes(),
        // Sent more than once it is never recognised.
        (Some(_), Some(_)) => return Ok(anonymous(false)),
    };
    if let Some(admin) = &state.settings.admin_api_key
        && bool::from(hash_of_key(admin.as_bytes()).ct_eq(&hash_of_key(presented)))
    {
        return Ok(anonymous(true));
    }
    match state.known_keys.tenant_of(&state.pool, &state.limits, &hash_of_key(presented)).await {
        Ok(Some(tenant)) => {
            let caller = Caller::Tenant(tenant.clone());
            Ok(Identity { tenant, caller, address, is_operator: false, has_key: true })
        }
        Ok(None) => Ok(anonymous(false)),
        Err(_) if route.is_some_and(|route| route.works_alone) => Ok(anonymous(false)),
        Err(error) => Err(super::state::read_refusal(&error)),
    }
}

/// Whether the route is open to this caller.
pub fn authorise(route: &Route, identity: &Identity, require_api_key: bool) -> Result<(), Refusal> {
    match route.auth {
        Auth::Operator if !identity.is_operator && route.method == "GET" => Err(Refusal::AdminKeyForReads),
        Auth::Operator if !identity.is_operator => Err(Refusal::AdminKeyForWrites),
        Auth::Tenant if require_api_key && !identity.has_key => Err(Refusal::ApiKeyForWrites),
        _ => Ok(()),
    }
}

/// The peer, or the `hops`-th address from the right of `X-Forwarded-For`. An entry that is no address ends the walk.
fn client_address(headers: &HeaderMap, peer: IpAddr, hops: usize) -> ClientAddress {
    let mut address = peer;
    if hops == 0 {
        return ClientAddress::from(address);
    }
    let forwarded: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .map(|value| value.to_str().unwrap_or("?"))
        .flat_map(|value| value.split(','))
        .collect();
    for entry in forwarded.iter().rev().take(hops) {
        match entry.trim().parse() {
            Ok(next) => address = next,
            Err(_) => break,
        }
    }
    ClientAddress::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_found_behind_its_proxies() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "192.0.2.1, 192.0.2.2".parse().expect("value"));
        headers.append("x-forwarded-for", "192.0.2.3".parse().expect("value"));
        let peer: IpAddr = "198.51.100.1".parse().expect("address");
        let client = |hops| client_address(&headers, peer, hops).to_string();
        assert_eq!(client(0), "198.51.100.1");
        assert_eq!(client(1), "192.0.2.3");
        assert_eq!(client(2), "192.0.2.2");
        assert_eq!(client(9), "192.0.2.1");
        headers.append("x-forwarded-for", "unknown".parse().expect("value"));
        assert_eq!(client_address(&headers, peer, 2).to_string(), "198.51.100.1");
    }
}
