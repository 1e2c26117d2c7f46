//! The table of routes: every operation of the contract with what the pipeline has to know of it.

use axum::Router;
use axum::routing::{MethodRouter, delete, get, patch, post, put};

use super::{
    agents, api_keys, billing, changelog, events, exports, health, idempotency, service_usage, services, settle,
};
use super::{settlements, state::ApiState, usage};

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
    read("/health", || get(health::alive)).strict().unlimited().alone(),
    read("/api/v1/health/ready", || get(health::ready)).strict().unlimited().alone(),
    read("/api/v1/version", || get(health::version)).alone(),
    read("/api/v1/changelog", || get(changelog::list)).alone(),
    write("POST", "/api/v1/usage", || post(usage::record)).idempotent(),
    write("POST", "/api/v1/usage/bulk", || post(usage::record_bulk)).idempotent(),
    write("POST", "/api/v1/settle", || post(settle::settle)).idempotent(),
    write("POST", "/api/v1/settle/bulk", || post(settle::settle_agent)).idempotent(),
    read("/api/v1/usage/export.json", || get(exports::json)),
    read("/api/v1/usage/export.csv", || get(exports::csv)),
    read("/api/v1/usage/:agent/:serviceId", || get(usage::outstanding)),
    write("DELETE", "/api/v1/usage/:agent/:serviceId", || delete(usage::reset)).idempotent(),
    read("/api/v1/billing/total", || get(billing::total)),
    read("/api/v1/billing/:agent/:serviceId", || get(billing::quote)),
    read("/api/v1/agents", || get(agents::list)),
    read("/api/v1/agents/:agent/total", || get(agents::total)),
    read("/api/v1/agents/:agent/usage", || get(agents::usage)),
    write("POST", "/api/v1/services", || post(services::register)).idempotent(),
    write("POST", "/api/v1/services/bulk", || post(services::register_bulk)).idempotent(),
    read("/api/v1/services", || get(services::list)),
    read("/api/v1/services/:serviceId", || get(services::show)),
    write("DELETE", "/api/v1/services/:serviceId", || delete(services::remove)).idempotent(),
    read("/api/v1/services/:serviceId/metadata", || get(services::metadata)),
    write("PUT", "/api/v1/services/:serviceId/metadata", || put(services::set_metadata)).idempotent(),
    write("PATCH", "/api/v1/services/:serviceId/price", || patch(services::set_price)).idempotent(),
    write("PATCH", "/api/v1/services/:serviceId/disabled", || patch(services::set_disabled)).idempotent(),
    write("POST", "/api/v1/services/:serviceId/disable", || post(services::disable)).idempotent(),
    write("POST", "/api/v1/services/:serviceId/enable", || post(services::enable)).idempotent(),
    read("/api/v1/services/:serviceId/usage", || get(service_usage::sums)),
    read("/api/v1/services/:serviceId/agents", || get(service_usage::agents)),
    read("/api/v1/services/:serviceId/agents/top", || get(service_usage::top_agents)),
    operator("POST", "/api/v1/api-keys", || post(api_keys::create)).pausable(),
    operator("GET", "/api/v1/api-keys", || get(api_keys::list)).strict(),
    operator("DELETE", "/api/v1/api-keys/:prefix", || delete(api_keys::revoke)).pausable(),
    read("/api/v1/events", || get(events::list)).strict(),
    read("/api/v1/events/summary", || get(events::summary)).strict(),
    read("/api/v1/settlements", || get(settlements::list)).strict(),
    read("/api/v1/settlements/:id", || get(settlements::show)).strict(),
    read("/api/v1/idempotency/:key", || get(idempotency::find)).strict(),
];

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// All routes of the table. axum gives a path to its most literal pattern, so that pattern is mounted with every method
/// that [`find`] has an answer for: its own, and those of the parameter patterns that hold the same paths.
pub fn mount() -> Router<ApiState> {
    let mut patterns: Vec<&str> = ROUTES.iter().map(|route| route.pattern).collect();
    patterns.sort_unstable();
    patterns.dedup();
    patterns.into_iter().map(braced).fold(Router::new(), |router, path| {
        let routes = METHODS.iter().filter_map(|method| find(method, &path));
        let methods = routes.fold(MethodRouter::new(), |methods, route| methods.merge((route.handler)()));
        router.route(&path, methods)
    })
}

/// The route of a request, by the pattern that matched; HEAD is answered as GET. Fixed names are no reserved words:
/// where `/services/bulk` has no GET, `/services/:serviceId` reads the service of that name.
pub fn find(method: &str, matched: &str) -> Option<&'static Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    let parameters = |route: &&Route| route.pattern.matches(':').count();
    ROUTES.iter().filter(|route| route.method == method && covers(route.pattern, matched)).min_by_key(parameters)
}

/// The value of `Allow` for a path that matches this pattern.
pub fn allow(matched: &str) -> String {
    let mut methods: Vec<&str> = Vec::new();
    for method in METHODS.into_iter().filter(|method| find(method, matched).is_some()) {
        methods.push(method);
        if method == "GET" {
            methods.push("HEAD");
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

/// Whether every path that matches `matched`, a pattern in axum's spelling, matches `pattern` too.
fn covers(pattern: &str, matched: &str) -> bool {
    let mut ours = pattern.split('/');
    let mut theirs = matched.split('/');
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return true,
            (Some(our), Some(their)) if our == their || our.starts_with(':') => {}
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
        assert_eq!(allow("/api/v1/services/bulk"), "GET, HEAD, POST, DELETE, OPTIONS");
        assert_eq!(allow("/api/v1/services/{serviceId}"), "GET, HEAD, DELETE, OPTIONS");
    }

    #[test]
    fn a_fixed_name_leaves_the_other_methods_to_the_parameter() {
        let found = |method, matched| find(method, matched).map(|route| route.pattern);
        assert_eq!(found("POST", "/api/v1/services/bulk"), Some("/api/v1/services/bulk"));
        for method in ["GET", "HEAD", "DELETE"] {
            assert_eq!(found(method, "/api/v1/services/bulk"), Some("/api/v1/services/:serviceId"));
        }
        assert_eq!(found("POST", "/api/v1/services/{serviceId}"), None);
        assert_eq!(found("PATCH", "/api/v1/services/bulk"), None);
    }

    /// [`find`] sees patterns only. A path of two patterns, neither of which covers the other, would escape it.
    #[test]
    fn of_two_patterns_that_share_a_path_one_covers_the_other() {
        let meet = |left: &str, right: &str| {
            let (left, right): (Vec<_>, Vec<_>) = (left.split('/').collect(), right.split('/').collect());
            let pairs = || left.iter().zip(&right);
            left.len() == right.len() && pairs().all(|(l, r)| l == r || l.starts_with(':') || r.starts_with(':'))
        };
        for left in ROUTES {
            for right in ROUTES.iter().filter(|right| meet(left.pattern, right.pattern)) {
                let one_covers = covers(left.pattern, right.pattern) || covers(right.pattern, left.pattern);
                assert!(one_covers, "{} and {}", left.pattern, right.pattern);
            }
        }
    }

    #[test]
    fn the_table_mounts() {
        let _: Router<ApiState> = mount();
    }
}
