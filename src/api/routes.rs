//! The table of routes: every operation of the API, with the rules that the pipeline applies to it.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::Router;
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use serde_json::Value;

use crate::api::handlers::admin;
use crate::api::handlers::agents;
use crate::api::handlers::api_keys;
use crate::api::handlers::audit_log;
use crate::api::handlers::billing;
use crate::api::handlers::changelog;
use crate::api::handlers::config;
use crate::api::handlers::console;
use crate::api::handlers::docs;
use crate::api::handlers::events;
use crate::api::handlers::exports;
use crate::api::handlers::health;
use crate::api::handlers::history;
use crate::api::handlers::idempotency;
use crate::api::handlers::metrics;
use crate::api::handlers::service_usage;
use crate::api::handlers::services;
use crate::api::handlers::settle;
use crate::api::handlers::settlements;
use crate::api::handlers::stats;
use crate::api::handlers::tenants;
use crate::api::handlers::usage;
use crate::api::handlers::webhooks;
use crate::api::openapi;
use crate::api::openapi::description::Description;
use crate::api::route::{Auth, Route, braced};
use crate::api::state::ApiState;
use crate::domain::api_key::Scope;

/// A read that depends on nobody's data.
const fn open(pattern: &'static str, handler: fn() -> MethodRouter<ApiState>, description: Description) -> Route {
    Route::new("GET", pattern, Auth::Open, handler, description)
}

/// A read of a tenant's data.
const fn read(pattern: &'static str, handler: fn() -> MethodRouter<ApiState>, description: Description) -> Route {
    open(pattern, handler, description).scope(Scope::Read)
}

/// A tenant's write. Keys that are limited to scopes need `scope` for it.
const fn write(
    method: &'static str,
    pattern: &'static str,
    scope: Scope,
    handler: fn() -> MethodRouter<ApiState>,
    description: Description,
) -> Route {
    Route::new(method, pattern, Auth::Tenant, handler, description).scope(scope).pausable()
}

const fn operator(
    method: &'static str,
    pattern: &'static str,
    handler: fn() -> MethodRouter<ApiState>,
    description: Description,
) -> Route {
    Route::new(method, pattern, Auth::Operator, handler, description)
}

/// In the order of the table in docs/api.md.
pub const ROUTES: &[Route] = &[
    operator("POST", "/api/v1/admin/pause", || post(admin::pause), admin::PAUSE).unlimited(),
    operator("POST", "/api/v1/admin/unpause", || post(admin::unpause), admin::UNPAUSE).unlimited(),
    open("/api/v1/admin/status", || get(admin::status), admin::STATUS).unlimited(),
    operator("POST", "/api/v1/admin/reset", || post(admin::reset), admin::RESET).unlimited(),
    operator("GET", "/api/v1/admin/history", || get(history::list), history::LIST)
        .strict()
        .unlimited()
        .without_database(),
    operator("GET", "/api/v1/admin/tenants", || get(tenants::list), tenants::LIST).strict(),
    operator("GET", "/api/v1/admin/idempotency/:key", || get(idempotency::find_outcome), idempotency::FIND_OUTCOME)
        .strict(),
    operator("GET", "/api/v1/audit", || get(audit_log::list), audit_log::LIST).strict(),
    open("/api/v1/config", || get(config::show), config::SHOW).strict().unlimited(),
    operator("PATCH", "/api/v1/config", || patch(config::change), config::CHANGE).unlimited(),
    Route { auth: Auth::Metrics, ..open("/api/v1/metrics", || get(metrics::show), metrics::SHOW) }
        .strict()
        .unlimited()
        .without_database(),
    read("/api/v1/stats", || get(stats::show), stats::SHOW).strict(),
    open("/health", || get(health::alive), health::ALIVE).strict().unlimited().without_database(),
    open("/api/v1/health/deep", || get(health::deep), health::DEEP).strict().without_database(),
    open("/api/v1/health/ready", || get(health::ready), health::READY).strict().unlimited().without_database(),
    open("/api/v1/version", || get(health::version), health::VERSION).without_database(),
    open("/api/v1/changelog", || get(changelog::list), changelog::LIST).without_database(),
    open("/api/v1/openapi.json", || get(openapi_document), openapi::SHOW).without_database(),
    write("POST", "/api/v1/usage", Scope::UsageWrite, || post(usage::record), usage::RECORD)
        .idempotent()
        .of_tenant_only(),
    write("POST", "/api/v1/usage/bulk", Scope::UsageWrite, || post(usage::record_bulk), usage::RECORD_BULK)
        .idempotent()
        .of_tenant_only(),
    write("POST", "/api/v1/settle", Scope::SettleWrite, || post(settle::settle), settle::SETTLE)
        .idempotent()
        .of_tenant_only(),
    write("POST", "/api/v1/settle/bulk", Scope::SettleWrite, || post(settle::settle_agent), settle::SETTLE_AGENT)
        .idempotent()
        .of_tenant_only(),
    read("/api/v1/usage/export.json", || get(exports::json), exports::JSON),
    read("/api/v1/usage/export.csv", || get(exports::csv), exports::CSV),
    read("/api/v1/usage/:agent/:serviceId", || get(usage::outstanding), usage::OUTSTANDING),
    write("DELETE", "/api/v1/usage/:agent/:serviceId", Scope::Admin, || delete(usage::reset), usage::RESET)
        .idempotent()
        .of_tenant_only(),
    read("/api/v1/billing/total", || get(billing::total), billing::TOTAL),
    read("/api/v1/billing/:agent/:serviceId", || get(billing::quote), billing::QUOTE),
    read("/api/v1/agents", || get(agents::list), agents::LIST),
    read("/api/v1/agents/:agent/total", || get(agents::total), agents::TOTAL),
    read("/api/v1/agents/:agent/usage", || get(agents::usage), agents::USAGE),
    write("POST", "/api/v1/services", Scope::Admin, || post(services::register), services::REGISTER).idempotent(),
    write("POST", "/api/v1/services/bulk", Scope::Admin, || post(services::register_bulk), services::REGISTER_BULK)
        .idempotent(),
    read("/api/v1/services", || get(services::list), services::LIST),
    read("/api/v1/services/:serviceId", || get(services::show), services::SHOW),
    write("DELETE", "/api/v1/services/:serviceId", Scope::Admin, || delete(services::remove), services::REMOVE)
        .idempotent(),
    read("/api/v1/services/:serviceId/metadata", || get(services::metadata), services::METADATA),
    write(
        "PUT",
        "/api/v1/services/:serviceId/metadata",
        Scope::Admin,
        || put(services::set_metadata),
        services::SET_METADATA,
    )
    .idempotent(),
    write(
        "PATCH",
        "/api/v1/services/:serviceId/price",
        Scope::Admin,
        || patch(services::set_price),
        services::SET_PRICE,
    )
    .idempotent(),
    write(
        "PATCH",
        "/api/v1/services/:serviceId/disabled",
        Scope::Admin,
        || patch(services::set_disabled),
        services::SET_DISABLED,
    )
    .idempotent(),
    write("POST", "/api/v1/services/:serviceId/disable", Scope::Admin, || post(services::disable), services::DISABLE)
        .idempotent(),
    write("POST", "/api/v1/services/:serviceId/enable", Scope::Admin, || post(services::enable), services::ENABLE)
        .idempotent(),
    read("/api/v1/services/:serviceId/usage", || get(service_usage::sums), service_usage::SUMS),
    read("/api/v1/services/:serviceId/agents", || get(service_usage::agents), service_usage::AGENTS),
    read("/api/v1/services/:serviceId/agents/top", || get(service_usage::top_agents), service_usage::TOP_AGENTS),
    operator("POST", "/api/v1/api-keys", || post(api_keys::create), api_keys::CREATE).pausable(),
    operator("GET", "/api/v1/api-keys", || get(api_keys::list), api_keys::LIST).strict(),
    operator("POST", "/api/v1/api-keys/:prefix/rotate", || post(api_keys::rotate), api_keys::ROTATE).pausable(),
    operator("DELETE", "/api/v1/api-keys/:prefix", || delete(api_keys::revoke), api_keys::REVOKE).pausable(),
    read("/api/v1/events", || get(events::list), events::LIST).strict(),
    read("/api/v1/events/summary", || get(events::summary), events::SUMMARY).strict(),
    write("POST", "/api/v1/webhooks", Scope::Webhooks, || post(webhooks::create), webhooks::CREATE),
    read("/api/v1/webhooks", || get(webhooks::list), webhooks::LIST).scope(Scope::Webhooks).strict(),
    read("/api/v1/webhooks/:id", || get(webhooks::show), webhooks::SHOW).scope(Scope::Webhooks),
    write("PATCH", "/api/v1/webhooks/:id", Scope::Webhooks, || patch(webhooks::change), webhooks::CHANGE),
    write(
        "POST",
        "/api/v1/webhooks/:id/rotate-secret",
        Scope::Webhooks,
        || post(webhooks::rotate_secret),
        webhooks::ROTATE_SECRET,
    ),
    write("POST", "/api/v1/webhooks/:id/redeliver", Scope::Webhooks, || post(webhooks::redeliver), webhooks::REDELIVER),
    write("DELETE", "/api/v1/webhooks/:id", Scope::Webhooks, || delete(webhooks::delete), webhooks::DELETE),
    write("POST", "/api/v1/webhooks/:id/test", Scope::Webhooks, || post(webhooks::test), webhooks::TEST),
    read("/api/v1/webhooks/:id/deliveries", || get(webhooks::list_deliveries), webhooks::LIST_DELIVERIES)
        .scope(Scope::Webhooks)
        .strict(),
    read("/api/v1/settlements", || get(settlements::list), settlements::LIST).strict(),
    read("/api/v1/settlements/:id", || get(settlements::show), settlements::SHOW).strict(),
    read("/api/v1/idempotency/:key", || get(idempotency::find), idempotency::FIND)
        .scope(Scope::UsageWrite)
        .scope(Scope::SettleWrite)
        .scope(Scope::Webhooks)
        .strict(),
];

/// HTML pages. They pass the pipeline, but are not operations of the API.
const PAGES: &[Route] = &[
    open("/docs", || get(docs_page), Description::of("showReference", "Show the API reference", "A page for people.")),
    open(
        "/docs/style.css",
        || get(docs::style),
        Description::of("showStyle", "Show the style of the reference", "A style sheet."),
    ),
    open(
        "/console",
        || get(console::page),
        Description::of("showConsole", "Show the console", "A page for operators."),
    )
    .unlimited()
    .without_database(),
    open(
        "/console/:file",
        || get(console::file),
        Description::of("showConsoleFile", "Show a file of the console", "A script, a style sheet or an icon."),
    )
    .unlimited()
    .without_database(),
];

/// Built on first use.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| openapi::document(ROUTES));

async fn openapi_document() -> Response {
    docs::document(&DOCUMENT)
}

async fn docs_page() -> Response {
    docs::page_of_all(&DOCUMENT)
}

fn all() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().chain(PAGES)
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// All routes of the table.
pub fn mount() -> Router<ApiState> {
    BY_PATTERN.iter().fold(Router::new(), |router, (path, routes)| {
        let methods = routes.iter().fold(MethodRouter::new(), |methods, route| methods.merge((route.handler)()));
        router.route(path, methods)
    })
}

/// The routes of each path, by its pattern in axum's notation. axum matches the most literal pattern, so that pattern
/// also gets the methods of parameter patterns that contain the same paths. Literal names are not reserved: where
/// `/services/bulk` has no GET, `/services/:serviceId` reads the service named `bulk`.
static BY_PATTERN: LazyLock<HashMap<String, Vec<&'static Route>>> = LazyLock::new(|| {
    let patterns = all().map(|route| braced(route.pattern));
    let routes = |path: &str| METHODS.iter().filter_map(|method| most_literal(method, path)).collect();
    patterns.map(|path| (path.clone(), routes(&path))).collect()
});

fn most_literal(method: &str, path: &str) -> Option<&'static Route> {
    let parameters = |route: &&Route| route.pattern.matches(':').count();
    all().filter(|route| route.method == method && covers(route.pattern, path)).min_by_key(parameters)
}

/// The route of a request, by the pattern that matched. HEAD uses the route of GET.
pub fn find(method: &str, matched: &str) -> Option<&'static Route> {
    let method = if method == "HEAD" { "GET" } else { method };
    BY_PATTERN.get(matched)?.iter().copied().find(|route| route.method == method)
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

/// Whether every path that matches `matched`, a pattern in axum's notation, also matches `pattern`.
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
    fn allow_lists_methods_in_a_fixed_order() {
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

    /// [`find`] compares patterns, so it would miss a path that matches two patterns of which neither covers the other.
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
