//! The table of routes: every operation of the contract with what the pipeline has to know of it.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::Router;
use axum::routing::{MethodRouter, delete, get, patch, post};

use super::{
    admin, api_keys, billing, config, health, idempotency, metrics, services, settle, settlements, state::ApiState,
    usage,
};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    Open,
    /// A recognised key, while keys are required.
    Tenant,
    Operator,
}

/// One operation: what the pipeline has to know of it, and who answers it.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub method: &'static str,
    /// With `:name` for a path parameter, as the contract writes it; part of every fingerprint.
    pub pattern: &'static str,
    pub auth: Auth,
    /// Honours `Idempotency-Key`.
    pub idempotent: bool,
    /// Counted by the rate limiter.
    pub limited: bool,
    /// Refused while the service is paused.
    pub pausable: bool,
    /// Refuses unknown query parameters.
    pub strict_query: bool,
    /// Works without a database, so an API key that cannot be looked up counts as unknown.
    pub works_alone: bool,
    handler: fn() -> MethodRouter<ApiState>,
}

impl Route {
    const fn new(
        method: &'static str,
        pattern: &'static str,
        auth: Auth,
        handler: fn() -> MethodRouter<ApiState>,
    ) -> Self {
        Self {
            method,
            pattern,
            auth,
            idempotent: false,
            limited: true,
            pausable: false,
            strict_query: false,
            works_alone: false,
            handler,
        }
    }

    const fn strict(self) -> Self {
        Self { strict_query: true, ..self }
    }

    const fn unlimited(self) -> Self {
        Self { limited: false, ..self }
    }

    const fn alone(self) -> Self {
        Self { works_alone: true, ..self }
    }

    const fn idempotent(self) -> Self {
        Self { idempotent: true, ..self }
    }

    const fn pausable(self) -> Self {
        Self { pausable: true, ..self }
    }
}

const fn read(pattern: &'static str, handler: fn() -> MethodRouter<ApiState>) -> Route {
    Route::new("GET", pattern, Auth::Open, handler)
}

/// A tenant's write.
const fn write(method: &'static str, pattern: &'static str, handler: fn() -> MethodRouter<ApiState>) -> Route {
    Route::new(method, pattern, Auth::Tenant, handler).pausable()
}

const fn operator(method: &'static str, pattern: &'static str, handler: fn() -> MethodRouter<ApiState>) -> Route {
    Route::new(method, pattern, Auth::Operator, handler)
}

/// In the order of the contract's table.
pub const ROUTES: &[Route] = &[
    operator("POST", "/api/v1/admin/pause", || post(admin::pause)).unlimited(),
    operator("POST", "/api/v1/admin/unpause", || post(admin::unpause)).unlimited(),
    read("/api/v1/admin/status", || get(admin::status)).unlimited(),
    operator("POST", "/api/v1/admin/reset", || post(admin::reset)).unlimited(),
    read("/api/v1/config", || get(config::show)).strict().unlimited(),
    operator("PATCH", "/api/v1/config", || patch(config::change)).unlimited(),
    read("/api/v1/metrics", || get(metrics::show)).strict().unlimited().alone(),
    read("/health", || get(health::alive)).strict().unlimited().alone(),
    read("/api/v1/health/deep", || get(health::deep)).strict().alone(),
    read("/api/v1/health/ready", || get(health::ready)).strict().unlimited().alone(),
    read("/api/v1/version", || get(health::version)).alone(),
    write("POST", "/api/v1/usage", || post(usage::record)).idempotent(),
    write("POST", "/api/v1/usage/bulk", || post(usage::record_bulk)).idempotent(),
    write("POST", "/api/v1/settle", || post(settle::settle)).idempotent(),
    write("POST", "/api/v1/settle/bulk", || post(settle::settle_agent)).idempotent(),
    read("/api/v1/usage/:agent/:serviceId", || get(usage::outstanding)),
    read("/api/v1/billing/:agent/:serviceId", || get(billing::quote)),
    write("POST", "/api/v1/services", || post(services::register)).idempotent(),
    read("/api/v1/services", || get(services::list)),
    read("/api/v1/services/:serviceId", || get(services::show)),
    write("POST", "/api/v1/services/:serviceId/disable", || post(services::disable)).idempotent(),
    write("POST", "/api/v1/services/:serviceId/enable", || post(services::enable)).idempotent(),
    operator("POST", "/api/v1/api-keys", || post(api_keys::create)).pausable(),
    operator("GET", "/api/v1/api-keys", || get(api_keys::list)).strict(),
    operator("DELETE", "/api/v1/api-keys/:prefix", || delete(api_keys::revoke)).pausable(),
    read("/api/v1/settlements", || get(settlements::list)).strict(),
    read("/api/v1/settlements/:id", || get(settlements::show)).strict(),
    read("/api/v1/idempotency/:key", || get(idempotency::find)).strict(),
];

/// All routes of the table. Their path parameters are named as in the table.
pub fn mount() -> Router<ApiState> {
    ROUTES.iter().fold(Router::new(), |router, route| router.route(&braced(route.pattern), (route.handler)()))
}

/// All routes of one pattern, by the pattern as axum writes it.
static BY_PATTERN: LazyLock<HashMap<String, Vec<&'static Route>>> = LazyLock::new(|| {
    let mut table: HashMap<String, Vec<&'static Route>> = HashMap::new();
    for route in ROUTES {
        table.entry(braced(route.pattern)).or_default().push(route);
    }
    table
});

fn of_pattern(matched: &str) -> &'static [&'static Route] {
    BY_PATTERN.get(matched).map_or(&[], Vec::as_slice)
}

/// The route of a request, by the pattern that matched; HEAD is answered as GET.
pub fn find(method: &str, matched: &str) -> Option<&'static Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    of_pattern(matched).iter().copied().find(|route| route.method == method)
}

/// The value of `Allow` for a path that matches this pattern.
pub fn allow(matched: &str) -> String {
    let has = |method| of_pattern(matched).iter().any(|route| route.method == method);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_lists_methods_in_the_contracts_order() {
        assert_eq!(allow("/api/v1/services"), "GET, HEAD, POST, OPTIONS");
        assert_eq!(allow("/api/v1/api-keys/{prefix}"), "DELETE, OPTIONS");
    }
}
