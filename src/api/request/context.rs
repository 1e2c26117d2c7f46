//! A request that matched its route, as the pipeline passes it to the extractors of handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::http::Uri;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::domain::caller::{Caller, Tenant};
use crate::domain::refusal::Refusal;
use crate::store::idempotency::CallerKey;

use crate::api::http::admission::Client;
use crate::api::http::received::Received;
use crate::api::request::caller::Identity;
use crate::api::request::errors::ApiError;
use crate::api::request::query::Query;
use crate::api::route::Route;
use crate::api::state::{ApiState, Cell};

#[derive(Debug)]
pub struct RequestContext {
    pub received: Arc<Received>,
    pub client: Client,
    pub route: &'static Route,
    pub parameters: Vec<(&'static str, String)>,
    pub identity: Identity,
    pub query: Query,
    pub deadline: Instant,
    /// Set once body and query are accepted.
    is_accepted: AtomicBool,
}

impl RequestContext {
    /// Body and query are not accepted yet.
    pub fn new(
        received: Arc<Received>,
        client: Client,
        route: &'static Route,
        identity: Identity,
        uri: &Uri,
        deadline: Instant,
    ) -> Self {
        Self {
            received,
            client,
            route,
            parameters: parameters(route.pattern, uri.path()),
            identity,
            query: Query::parse(uri.query().unwrap_or_default()),
            deadline,
            is_accepted: AtomicBool::new(false),
        }
    }

    pub fn tenant(&self) -> &Tenant {
        &self.identity.tenant
    }

    /// The cell of the caller's tenant. Requests of the operator are requests of the tenant `public`.
    pub fn cell<'a>(&self, state: &'a ApiState) -> &'a Cell {
        &state.cells[self.identity.cell]
    }

    pub fn is_accepted(&self) -> bool {
        self.is_accepted.load(Ordering::Relaxed)
    }

    /// The tenant of the request does not live where the directory of this process says. The retry is to find it in its new
    /// cell. Only its own key is looked up again: the move may be unfinished for long.
    pub fn note_departure(&self, state: &ApiState) {
        if let Some(hash) = &self.identity.key_hash {
            state.known_keys.expire(hash);
        }
    }

    /// A path parameter, decoded.
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(own, _)| *own == name).map_or("", |(_, value)| value)
    }

    /// The operator uses the idempotency keys of the tenant that it acts for: a key that it repeats for another tenant is
    /// another key.
    pub fn caller_key(&self, key: String) -> CallerKey {
        let Identity { caller, tenant, acts_for_tenant, .. } = &self.identity;
        let owner = if *acts_for_tenant { Caller::Tenant(tenant.clone()).to_string() } else { caller.to_string() };
        CallerKey { caller: owner, key }
    }

    /// Accepts the request, unless it has a parameter that a strict route does not describe, or U+0000.
    pub fn check_query(&self) -> Result<(), Refusal> {
        let known = self.route.description.query;
        let is_known = |name: &str| known.iter().any(|parameter| parameter.name == name);
        if self.route.strict_query
            && let Some(name) = self.query.names().find(|name| !is_known(name))
        {
            return Err(Refusal::UnexpectedParameter(name.to_owned()));
        }
        let has_nul = self.query.has_nul() || self.parameters.iter().any(|(_, value)| value.contains('\0'));
        if has_nul {
            return Err(Refusal::NulCharacter);
        }
        self.is_accepted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the context that the pipeline attached to a request.
    pub fn of(parts: &Parts) -> Result<Arc<Self>, ApiError> {
        parts.extensions.get::<Arc<Self>>().cloned().ok_or(Refusal::Internal.into())
    }
}

/// The decoded path parameters of `path` under `pattern`. axum has none where a literal route stands in for a pattern:
/// `GET /services/bulk` reads the service named `bulk`.
fn parameters(pattern: &'static str, path: &str) -> Vec<(&'static str, String)> {
    if !pattern.contains(':') {
        return Vec::new();
    }
    pattern
        .split('/')
        .zip(path.split('/'))
        .filter_map(|(name, value)| Some((name.strip_prefix(':')?, value)))
        .map(|(name, value)| (name, percent_decode_str(value).decode_utf8_lossy().into_owned()))
        .collect()
}
