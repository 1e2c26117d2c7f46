//! HTTP contract, section 3.5: every route by a key of every scope. A route of the table without a row here fails the
//! test.

use agentpay_billing::api::routes::ROUTES;
use agentpay_billing::domain::api_key::Scope;
use serde_json::{Value, json};

use crate::support::{Client, Service};

const USAGE: &[&str] = &["usage:write"];
const SETTLE: &[&str] = &["settle:write"];
const READ: &[&str] = &["read"];
const HOOKS: &[&str] = &["webhooks"];
const HOOKS_READ: &[&str] = &["read", "webhooks"];
const ADMIN: &[&str] = &[];
const ANY: &[&str] = &["usage:write", "settle:write", "read", "webhooks"];

/// What a route needs of a key.
#[derive(Clone, Copy)]
enum Need {
    Nothing,
    /// The operator, whatever key is sent.
    Operator,
    /// One of these scopes, or `admin`.
    Scopes(&'static [&'static str]),
}
use Need::{Nothing, Operator, Scopes};

/// Method, pattern, path, need. Without a valid body no write changes anything.
const ROWS: &[(&str, &str, &str, Need)] = &[
    ("POST", "/api/v1/admin/pause", "/api/v1/admin/pause", Operator),
    ("POST", "/api/v1/admin/unpause", "/api/v1/admin/unpause", Operator),
    ("GET", "/api/v1/admin/status", "/api/v1/admin/status", Nothing),
    ("POST", "/api/v1/admin/reset", "/api/v1/admin/reset", Operator),
    ("GET", "/api/v1/admin/history", "/api/v1/admin/history", Operator),
    ("GET", "/api/v1/admin/tenants", "/api/v1/admin/tenants", Operator),
    ("GET", "/api/v1/admin/idempotency/:key", "/api/v1/admin/idempotency/none", Operator),
    ("GET", "/api/v1/audit", "/api/v1/audit", Operator),
    ("GET", "/api/v1/config", "/api/v1/config", Nothing),
    ("PATCH", "/api/v1/config", "/api/v1/config", Operator),
    ("GET", "/api/v1/metrics", "/api/v1/metrics", Operator),
    ("GET", "/api/v1/stats", "/api/v1/stats", Scopes(READ)),
    ("GET", "/health", "/health", Nothing),
    ("GET", "/api/v1/health/deep", "/api/v1/health/deep", Nothing),
    ("GET", "/api/v1/health/ready", "/api/v1/health/ready", Nothing),
    ("GET", "/api/v1/version", "/api/v1/version", Nothing),
    ("GET", "/api/v1/changelog", "/api/v1/changelog", Nothing),
    ("GET", "/api/v1/openapi.json", "/api/v1/openapi.json", Nothing),
    ("POST", "/api/v1/usage", "/api/v1/usage", Scopes(USAGE)),
    ("POST", "/api/v1/usage/bulk", "/api/v1/usage/bulk", Scopes(USAGE)),
    ("POST", "/api/v1/settle", "/api/v1/settle", Scopes(SETTLE)),
    ("POST", "/api/v1/settle/bulk", "/api/v1/settle/bulk", Scopes(SETTLE)),
    ("GET", "/api/v1/usage/export.json", "/api/v1/usage/export.json", Scopes(READ)),
    ("GET", "/api/v1/usage/export.csv", "/api/v1/usage/export.csv", Scopes(READ)),
    ("GET", "/api/v1/usage/:agent/:serviceId", "/api/v1/usage/none/s", Scopes(READ)),
    ("DELETE", "/api/v1/usage/:agent/:serviceId", "/api/v1/usage/none/s", Scopes(ADMIN)),
    ("GET", "/api/v1/billing/total", "/api/v1/billing/total", Scopes(READ)),
    ("GET", "/api/v1/billing/:agent/:serviceId", "/api/v1/billing/none/s", Scopes(READ)),
    ("GET", "/api/v1/agents", "/api/v1/agents", Scopes(READ)),
    ("GET", "/api/v1/agents/:agent/total", "/api/v1/agents/none/total", Scopes(READ)),
    ("GET", "/api/v1/agents/:agent/usage", "/api/v1/agents/none/usage", Scopes(READ)),
    ("POST", "/api/v1/services", "/api/v1/services", Scopes(ADMIN)),
    ("POST", "/api/v1/services/bulk", "/api/v1/services/bulk", Scopes(ADMIN)),
    ("GET", "/api/v1/services", "/api/v1/services", Scopes(READ)),
    ("GET", "/api/v1/services/:serviceId", "/api/v1/services/none", Scopes(READ)),
    ("DELETE", "/api/v1/services/:serviceId", "/api/v1/services/none", Scopes(ADMIN)),
    ("GET", "/api/v1/services/:serviceId/metadata", "/api/v1/services/none/metadata", Scopes(READ)),
    ("PUT", "/api/v1/services/:serviceId/metadata", "/api/v1/services/none/metadata", Scopes(ADMIN)),
    ("PATCH", "/api/v1/services/:serviceId/price", "/api/v1/services/none/price", Scopes(ADMIN)),
    ("PATCH", "/api/v1/services/:serviceId/disabled", "/api/v1/services/none/disabled", Scopes(ADMIN)),
    ("POST", "/api/v1/services/:serviceId/disable", "/api/v1/services/none/disable", Scopes(ADMIN)),
    ("POST", "/api/v1/services/:serviceId/enable", "/api/v1/services/none/enable", Scopes(ADMIN)),
    ("GET", "/api/v1/services/:serviceId/usage", "/api/v1/services/none/usage", Scopes(READ)),
    ("GET", "/api/v1/services/:serviceId/agents", "/api/v1/services/none/agents", Scopes(READ)),
    ("GET", "/api/v1/services/:serviceId/agents/top", "/api/v1/services/none/agents/top", Scopes(READ)),
    ("POST", "/api/v1/api-keys", "/api/v1/api-keys", Operator),
    ("GET", "/api/v1/api-keys", "/api/v1/api-keys", Operator),
    ("POST", "/api/v1/api-keys/:prefix/rotate", "/api/v1/api-keys/none/rotate", Operator),
    ("DELETE", "/api/v1/api-keys/:prefix", "/api/v1/api-keys/none", Operator),
    ("GET", "/api/v1/events", "/api/v1/events", Scopes(READ)),
    ("GET", "/api/v1/events/summary", "/api/v1/events/summary", Scopes(READ)),
    ("POST", "/api/v1/webhooks", "/api/v1/webhooks", Scopes(HOOKS)),
    ("GET", "/api/v1/webhooks", "/api/v1/webhooks", Scopes(HOOKS_READ)),
    ("GET", "/api/v1/webhooks/:id", "/api/v1/webhooks/none", Scopes(HOOKS_READ)),
    ("PATCH", "/api/v1/webhooks/:id", "/api/v1/webhooks/none", Scopes(HOOKS)),
    ("POST", "/api/v1/webhooks/:id/rotate-secret", "/api/v1/webhooks/none/rotate-secret", Scopes(HOOKS)),
    ("POST", "/api/v1/webhooks/:id/redeliver", "/api/v1/webhooks/none/redeliver", Scopes(HOOKS)),
    ("DELETE", "/api/v1/webhooks/:id", "/api/v1/webhooks/none", Scopes(HOOKS)),
    ("POST", "/api/v1/webhooks/:id/test", "/api/v1/webhooks/none/test", Scopes(HOOKS)),
    ("GET", "/api/v1/webhooks/:id/deliveries", "/api/v1/webhooks/none/deliveries", Scopes(HOOKS_READ)),
    ("GET", "/api/v1/settlements", "/api/v1/settlements", Scopes(READ)),
    ("GET", "/api/v1/settlements/:id", "/api/v1/settlements/none", Scopes(READ)),
    ("GET", "/api/v1/idempotency/:key", "/api/v1/idempotency/none", Scopes(ANY)),
];

async fn with_key(service: &Service, operator: &Client, body: Value) -> Client {
    let made = operator.post("/api/v1/api-keys", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    service.client().with("x-api-key", made.json()["key"].as_str().expect("a key"))
}

#[tokio::test]
async fn a_key_may_use_the_routes_of_its_scopes_and_no_others() {
    for require in ["true", "false"] {
        let service = Service::start(&[("REQUIRE_API_KEY", require), ("ADMIN_API_KEY", "admin")]).await;
        let operator = service.client().with("x-api-key", "admin");
        let mut keys = vec![(None, with_key(&service, &operator, json!({ "label": "l" })).await)];
        for scope in Scope::ALL.map(Scope::as_str) {
            keys.push((Some(scope), with_key(&service, &operator, json!({ "label": "l", "scopes": [scope] })).await));
        }
        for route in ROUTES {
            let row = ROWS.iter().find(|row| (row.0, row.1) == (route.method, route.pattern));
            let &(method, _, path, need) = row.unwrap_or_else(|| panic!("no row for {route:?}"));
            for (scope, client) in &keys {
                let answer = client.send(method, path, (method != "GET").then_some("[]")).await;
                let case = format!("{method} {path} with {scope:?}, REQUIRE_API_KEY={require}: {answer:?}");
                match need {
                    Nothing => assert_eq!(answer.status, 200, "{case}"),
                    Operator if path == "/api/v1/metrics" && require == "false" => assert_eq!(answer.status, 200),
                    Operator => assert_eq!(answer.status, 401, "{case}"),
                    Scopes(scopes) => {
                        let is_allowed = scope.is_none_or(|scope| scope == "admin" || scopes.contains(&scope));
                        let is_refused = answer.status == 403;
                        assert_eq!(is_allowed, !is_refused, "{case}");
                        if is_refused {
                            let needed = [scopes, &["admin"]].concat().join(" or ");
                            let message = format!("the API key needs the scope {needed}");
                            assert_eq!(answer.error(), (403, "insufficient_scope".to_owned(), message), "{case}");
                        }
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_key_with_several_scopes_has_the_rights_of_each() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]).await;
    let operator = service.client().with("x-api-key", "admin");
    let scopes = json!({ "label": "l", "scopes": ["read", "usage:write", "read"] });
    let made = operator.post("/api/v1/api-keys", &scopes).await.json();
    assert_eq!(made["scopes"], json!(["usage:write", "read"]));
    let client = service.client().with("x-api-key", made["key"].as_str().expect("a key"));
    let record = json!({ "agent": "a", "serviceId": "s", "requests": 1 });
    assert_eq!(client.post("/api/v1/usage", &record).await.status, 201);
    assert_eq!(client.get("/api/v1/usage/a/s").await.json()["total"], 1);
    assert_eq!(client.post("/api/v1/settle", &record).await.status, 403);
    assert_eq!(operator.get("/api/v1/api-keys").await.json()["items"][0]["scopes"], made["scopes"]);
}
