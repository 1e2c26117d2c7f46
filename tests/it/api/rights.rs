//! HTTP contract, section 3.2: every route by every kind of caller, with and without required keys. A route of the table
//! without a row here fails the test.

use agentpay_billing::api::routes::ROUTES;
use serde_json::json;

use crate::support::{Answer, Client, Service};

/// What a route asks of its caller, and the status of who may use it.
#[derive(Clone, Copy)]
enum Need {
    Nothing(u16),
    /// A recognised key, while keys are required.
    Key(u16),
    Operator(u16),
    /// The operator or a token, while keys are required.
    Metrics(u16),
}
use Need::{Key, Metrics, Nothing, Operator};

const RECORD: &str = r#"{"agent":"a","serviceId":"s","requests":1}"#;
const RECORDS: &str = r#"{"items":[{"agent":"a","serviceId":"s","requests":1}]}"#;
const REGISTRATIONS: &str = r#"{"items":[{"serviceId":"t","priceStroops":1}]}"#;
const HOOK: &str = r#"{"url":"https://example.com/hook","events":["webhook.test"]}"#;

/// Method, pattern, path, body, need. What is named in a path is not there, so that no order matters.
const ROWS: &[(&str, &str, &str, Option<&str>, Need)] = &[
    ("POST", "/api/v1/admin/pause", "/api/v1/admin/pause", None, Operator(200)),
    ("POST", "/api/v1/admin/unpause", "/api/v1/admin/unpause", None, Operator(200)),
    ("GET", "/api/v1/admin/status", "/api/v1/admin/status", None, Nothing(200)),
    // Allowed to ask, and answered that it is switched off.
    ("POST", "/api/v1/admin/reset", "/api/v1/admin/reset", None, Operator(404)),
    ("GET", "/api/v1/admin/history", "/api/v1/admin/history", None, Operator(200)),
    ("GET", "/api/v1/admin/tenants", "/api/v1/admin/tenants", None, Operator(200)),
    ("GET", "/api/v1/admin/idempotency/:key", "/api/v1/admin/idempotency/none?tenantId=public", None, Operator(404)),
    ("GET", "/api/v1/audit", "/api/v1/audit", None, Operator(200)),
    ("GET", "/api/v1/config", "/api/v1/config", None, Nothing(200)),
    ("PATCH", "/api/v1/config", "/api/v1/config", Some(r#"{"bulkMaxItems":100}"#), Operator(200)),
    ("GET", "/api/v1/metrics", "/api/v1/metrics", None, Metrics(200)),
    ("GET", "/api/v1/stats", "/api/v1/stats", None, Nothing(200)),
    ("GET", "/health", "/health", None, Nothing(200)),
    ("GET", "/api/v1/health/deep", "/api/v1/health/deep", None, Nothing(200)),
    ("GET", "/api/v1/health/ready", "/api/v1/health/ready", None, Nothing(200)),
    ("GET", "/api/v1/version", "/api/v1/version", None, Nothing(200)),
    ("GET", "/api/v1/changelog", "/api/v1/changelog", None, Nothing(200)),
    ("GET", "/api/v1/openapi.json", "/api/v1/openapi.json", None, Nothing(200)),
    ("POST", "/api/v1/usage", "/api/v1/usage", Some(RECORD), Key(201)),
    ("POST", "/api/v1/usage/bulk", "/api/v1/usage/bulk", Some(RECORDS), Key(201)),
    ("POST", "/api/v1/settle", "/api/v1/settle", Some(RECORD), Key(200)),
    ("POST", "/api/v1/settle/bulk", "/api/v1/settle/bulk", Some(RECORD), Key(200)),
    ("GET", "/api/v1/usage/export.json", "/api/v1/usage/export.json", None, Nothing(200)),
    ("GET", "/api/v1/usage/export.csv", "/api/v1/usage/export.csv", None, Nothing(200)),
    ("GET", "/api/v1/usage/:agent/:serviceId", "/api/v1/usage/none/s", None, Nothing(200)),
    ("DELETE", "/api/v1/usage/:agent/:serviceId", "/api/v1/usage/none/s", None, Key(404)),
    ("GET", "/api/v1/billing/total", "/api/v1/billing/total", None, Nothing(200)),
    ("GET", "/api/v1/billing/:agent/:serviceId", "/api/v1/billing/none/s", None, Nothing(404)),
    ("GET", "/api/v1/agents", "/api/v1/agents", None, Nothing(200)),
    ("GET", "/api/v1/agents/:agent/total", "/api/v1/agents/none/total", None, Nothing(200)),
    ("GET", "/api/v1/agents/:agent/usage", "/api/v1/agents/none/usage", None, Nothing(200)),
    ("POST", "/api/v1/services", "/api/v1/services", Some(r#"{"serviceId":"a b"}"#), Key(400)),
    ("POST", "/api/v1/services/bulk", "/api/v1/services/bulk", Some(REGISTRATIONS), Key(201)),
    ("GET", "/api/v1/services", "/api/v1/services", None, Nothing(200)),
    ("GET", "/api/v1/services/:serviceId", "/api/v1/services/none", None, Nothing(404)),
    ("DELETE", "/api/v1/services/:serviceId", "/api/v1/services/none", None, Key(404)),
    ("GET", "/api/v1/services/:serviceId/metadata", "/api/v1/services/none/metadata", None, Nothing(404)),
    ("PUT", "/api/v1/services/:serviceId/metadata", "/api/v1/services/none/metadata", None, Key(404)),
    ("PATCH", "/api/v1/services/:serviceId/price", "/api/v1/services/none/price", None, Key(404)),
    ("PATCH", "/api/v1/services/:serviceId/disabled", "/api/v1/services/none/disabled", None, Key(400)),
    ("POST", "/api/v1/services/:serviceId/disable", "/api/v1/services/none/disable", None, Key(404)),
    ("POST", "/api/v1/services/:serviceId/enable", "/api/v1/services/none/enable", None, Key(404)),
    ("GET", "/api/v1/services/:serviceId/usage", "/api/v1/services/none/usage", None, Nothing(200)),
    ("GET", "/api/v1/services/:serviceId/agents", "/api/v1/services/none/agents", None, Nothing(200)),
    ("GET", "/api/v1/services/:serviceId/agents/top", "/api/v1/services/none/agents/top", None, Nothing(200)),
    ("POST", "/api/v1/api-keys", "/api/v1/api-keys", Some(r#"{"label":"l"}"#), Operator(201)),
    ("GET", "/api/v1/api-keys", "/api/v1/api-keys", None, Operator(200)),
    ("POST", "/api/v1/api-keys/:prefix/rotate", "/api/v1/api-keys/none/rotate", None, Operator(404)),
    ("DELETE", "/api/v1/api-keys/:prefix", "/api/v1/api-keys/none", None, Operator(404)),
    ("GET", "/api/v1/events", "/api/v1/events", None, Nothing(200)),
    ("GET", "/api/v1/events/summary", "/api/v1/events/summary", None, Nothing(200)),
    ("POST", "/api/v1/webhooks", "/api/v1/webhooks", Some(HOOK), Key(201)),
    ("GET", "/api/v1/webhooks", "/api/v1/webhooks", None, Nothing(200)),
    ("GET", "/api/v1/webhooks/:id", "/api/v1/webhooks/none", None, Nothing(404)),
    ("PATCH", "/api/v1/webhooks/:id", "/api/v1/webhooks/none", None, Key(404)),
    ("POST", "/api/v1/webhooks/:id/rotate-secret", "/api/v1/webhooks/none/rotate-secret", None, Key(404)),
    (
        "POST",
        "/api/v1/webhooks/:id/redeliver",
        "/api/v1/webhooks/none/redeliver",
        Some(r#"{"failedSince":0}"#),
        Key(404),
    ),
    ("DELETE", "/api/v1/webhooks/:id", "/api/v1/webhooks/none", None, Key(404)),
    ("POST", "/api/v1/webhooks/:id/test", "/api/v1/webhooks/none/test", None, Key(404)),
    ("GET", "/api/v1/webhooks/:id/deliveries", "/api/v1/webhooks/none/deliveries", None, Nothing(404)),
    ("GET", "/api/v1/settlements", "/api/v1/settlements", None, Nothing(200)),
    ("GET", "/api/v1/settlements/:id", "/api/v1/settlements/none", None, Nothing(404)),
    ("GET", "/api/v1/idempotency/:key", "/api/v1/idempotency/none", None, Nothing(404)),
];

/// Keys required; not required, with an operator's key and without.
const MODES: [&[(&str, &str)]; 3] = [
    &[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "the-admin-key")],
    &[("REQUIRE_API_KEY", "false"), ("ADMIN_API_KEY", "the-admin-key")],
    &[],
];

/// Name, client, whether its key is recognised, and in which of the modes it is the operator.
type Kind = (&'static str, Client, bool, [bool; 3]);

async fn kinds(service: &Service, mode: usize) -> Vec<Kind> {
    let anyone = service.client();
    let with_admin_key = anyone.with("x-api-key", "the-admin-key");
    let admin = if mode == 2 { anyone.clone() } else { with_admin_key.clone() };
    let mut made = Vec::new();
    for _ in 0..2 {
        let key = admin.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json()["key"].clone();
        made.push(key.as_str().expect("a key").to_owned());
    }
    let tenant = anyone.with("x-api-key", &made[0]);
    let revoked = anyone.with("x-api-key", &made[1]);
    let path = format!("/api/v1/api-keys/{}", &made[1][..12]);
    assert_eq!(admin.send("DELETE", &path, None).await.status, 204);
    vec![
        ("no key", anyone.clone(), false, [false, false, true]),
        ("empty key", anyone.with("x-api-key", ""), false, [false, false, true]),
        ("unknown key", anyone.with("x-api-key", "apk_00000000000000000000000000000000"), false, [false; 3]),
        ("revoked key", revoked, false, [false; 3]),
        ("admin key twice", with_admin_key.with("x-api-key", "the-admin-key"), false, [false; 3]),
        ("tenant key twice", tenant.with("x-api-key", &made[0]), false, [false; 3]),
        ("tenant key", tenant, true, [false; 3]),
        ("admin key", with_admin_key, false, [true, true, false]),
    ]
}

#[tokio::test]
async fn every_route_is_open_to_the_callers_that_may_use_it_and_to_no_other() {
    for (mode, environment) in MODES.into_iter().enumerate() {
        let required = mode == 0;
        let service = Service::start(environment).await;
        let kinds = kinds(&service, mode).await;
        let (_, operator, ..) = kinds.iter().rfind(|(.., operates)| operates[mode]).expect("an operator").clone();
        for route in ROUTES {
            let row = ROWS.iter().find(|row| (row.0, row.1) == (route.method, route.pattern));
            let &(method, _, path, body, need) = row.unwrap_or_else(|| panic!("no row for {route:?}"));
            for (name, client, is_recognised, operates) in &kinds {
                let (allowed, status) = match need {
                    Nothing(status) => (true, status),
                    Key(status) => (!required || *is_recognised, status),
                    Operator(status) => (operates[mode], status),
                    Metrics(status) => (!required || operates[mode], status),
                };
                let answer = client.send(method, path, body).await;
                let case = format!("{method} {path} by {name}, mode {mode}: {answer:?}");
                if allowed {
                    assert_eq!(answer.status, status, "{case}");
                } else {
                    refused(&answer, need, method, &case);
                }
                if method == "GET" {
                    let head = client.send("HEAD", path, None).await;
                    assert_eq!((head.status, head.text.as_str()), (answer.status, ""), "HEAD, {case}");
                }
                assert_eq!(client.send("OPTIONS", path, None).await.status, 204, "OPTIONS, {case}");
                // One that was paused would refuse what follows.
                if path.ends_with("/pause") {
                    operator.send("POST", "/api/v1/admin/unpause", None).await;
                }
            }
        }
    }
}

fn refused(answer: &Answer, need: Need, method: &str, case: &str) {
    let message = match need {
        Operator(_) if method == "GET" => "valid ADMIN_API_KEY required for privileged reads",
        Operator(_) => "valid ADMIN_API_KEY required for privileged writes",
        Metrics(_) => "valid ADMIN_API_KEY or METRICS_TOKEN required for metrics",
        _ => "valid X-API-Key required for write request",
    };
    assert_eq!(answer.error(), (401, "unauthorized".to_owned(), message.to_owned()), "{case}");
    assert!(!answer.headers.contains_key("www-authenticate"), "{case}");
}
