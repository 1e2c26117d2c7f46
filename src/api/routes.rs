//! The table of routes: every operation of the contract with what the pipeline has to know of it.

use axum::Router;
use axum::routing::{MethodRouter, delete, get, post};

use super::{api_keys, billing, health, idempotency, services, settle, settlements, state::ApiState, usage};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    Open,
    /// A recognised key, while keys are required.
    Tenant,
    Operator,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub method: &'static str,
    /// With `:name` for a path parameter, as the contract writes it; part of every fingerprint.
    pub pattern: &'static str,
    pub auth: Auth,
    /// Honours `Idempotency-Key`.
    pub idempotent: bool,
    /// Refuses unknown query parameters.
    pub strict_query: bool,
    /// Works without a database, so an API key that cannot be looked up counts as unknown.
    pub works_alone: bool,
}

const fn read(pattern: &'static str, strict_query: bool) -> Route {
    Route { method: "GET", pattern, auth: Auth::Open, idempotent: false, strict_query, works_alone: false }
}

const fn probe(pattern: &'static str, strict_query: bool) -> Route {
    Route { works_alone: true, ..read(pattern, strict_query) }
}

const fn write(method: &'static str, pattern: &'static str) -> Route {
    Route { method, pattern, auth: Auth::Tenant, idempotent: true, strict_query: false, works_alone: false }
}

const fn operator(method: &'static str, pattern: &'static str, strict_query: bool) -> Route {
    Route { method, pattern, auth: Auth::Operator, idempotent: false, strict_query, works_alone: false }
}

pub const ROUTES: &[Route] = &[
    probe("/health", true),
    probe("/api/v1/health/ready", true),
    probe("/api/v1/version", false),
    write("POST", "/api/v1/usage"),
    write("POST", "/api/v1/usage/bulk"),
    write("POST", "/api/v1/settle"),
    write("POST", "/api/v1/settle/bulk"),
    read("/api/v1/usage/:agent/:serviceId", false),
    read("/api/v1/billing/:agent/:serviceId", false),
    write("POST", "/api/v1/services"),
    read("/api/v1/services", false),
    read("/api/v1/services/:serviceId", false),
    write("POST", "/api/v1/services/:serviceId/disable"),
    write("POST", "/api/v1/services/:serviceId/enable"),
    operator("POST", "/api/v1/api-keys", false),
    operator("GET", "/api/v1/api-keys", true),
    operator("DELETE", "/api/v1/api-keys/:prefix", false),
    read("/api/v1/settlements", true),
    read("/api/v1/settlements/:id", true),
    read("/api/v1/idempotency/:key", true),
];

fn handler(route: &Route) -> MethodRouter<ApiState> {
    match (route.method, route.pattern) {
        ("GET", "/health") => get(health::alive),
        ("GET", "/api/v1/health/ready") => get(health::ready),
        ("GET", "/api/v1/version") => get(health::version),
        ("POST", "/api/v1/usage") => post(usage::record),
        ("POST", "/api/v1/usage/bulk") => post(usage::record_bulk),
        ("GET", "/api/v1/usage/:agent/:serviceId") => get(usage::outstanding),
        ("POST", "/api/v1/settle") => post(settle::settle),
        ("POST", "/api/v1/settle/bulk") => post(settle::settle_agent),
        ("GET", "/api/v1/billing/:agent/:serviceId") => get(billing::quote),
        ("POST", "/api/v1/services") => post(services::register),
        ("GET", "/api/v1/services") => get(services::list),
        ("GET", "/api/v1/services/:serviceId") => get(services::show),
        ("POST", "/api/v1/services/:serviceId/disable") => post(services::disable),
        ("POST", "/api/v1/services/:serviceId/enable") => post(services::enable),
        ("POST", "/api/v1/api-keys") => post(api_keys::create),
        ("GET", "/api/v1/api-keys") => get(api_keys::list),
        ("DELETE", "/api/v1/api-keys/:prefix") => delete(api_keys::revoke),
        ("GET", "/api/v1/settlements") => get(settlements::list),
        ("GET", "/api/v1/settlements/:id") => get(settlements::show),
        ("GET", "/api/v1/idempotency/:key") => get(idempotency::find),
        (method, pattern) => unreachable!("no handler for {method} {pattern}"),
    }
}

/// All routes of the table. Their path parameters are named as in the table.
pub fn mount() -> Router<ApiState> {
    ROUTES.iter().fold(Router::new(), |router, route| router.route(&braced(route.pattern), handler(route)))
}

/// The route of a request, by the pattern that matched; HEAD is answered as GET.
pub fn find(method: &str, matched: &str) -> Option<&'static Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    ROUTES.iter().find(|route| route.method == method && same_pattern(route.pattern, matched))
}

/// The value of `Allow` for a path that matches this pattern.
pub fn allow(matched: &str) -> String {
    let has = |method| ROUTES.iter().any(|route| route.method == method && same_pattern(route.pattern, matched));
    let mut methods: Vec<&str> = Vec::new();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        if has(if method == "HEAD" { "GET" } else { method }) {
            methods.push(method);
        }
    }
    methods.push("OPTIONS");
    methods.join(", ")
}

/// `:name` as axum writes it.
fn braced(pattern: &str) -> String {
    pattern
        .split('/')
        .map(|segment| segment.strip_prefix(':').map_or(segment.to_owned(), |name| format!("{{{name}}}")))
        .collect::<Vec<_>>()
        .join("/")
}

fn same_pattern(pattern: &str, matched: &str) -> bool {
    let mut ours = pattern.split('/');
    let mut theirs = matched.split('/');
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return true,
            (Some(our), Some(their)) if our == their || (our.starts_with(':') && their.starts_with('{')) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_lists_methods_in_the_contracts_order() {
        assert_eq!(allow("/api/v1/services"), "GET, HEAD, POST, OPTIONS");
        assert_eq!(allow("/api/v1/api-keys/{prefix}"), "DELETE, OPTIONS");
    }
}
