//! The table that mounts the routes and the OpenAPI document have the same operations (HTTP contract, section 2.1).

use std::collections::BTreeSet;

use agentpay_billing::api::route::{Auth, Route};
use agentpay_billing::api::routes::ROUTES;
use serde_json::{Value, json};

use crate::support::Service;

/// Each operation: method, path, statuses of success, auth, and what applies of idem, rl, pause and strict (an
/// unknown query parameter is 400).
const OPERATIONS: &str = "
POST /api/v1/admin/pause 200 operator
POST /api/v1/admin/unpause 200 operator
GET /api/v1/admin/status 200 open
POST /api/v1/admin/reset 200 operator
GET /api/v1/admin/history 200 operator strict
GET /api/v1/admin/tenants 200 operator rl strict
GET /api/v1/admin/idempotency/:key 200 operator rl strict
GET /api/v1/audit 200 operator rl strict
GET /api/v1/config 200 open strict
PATCH /api/v1/config 200 operator
GET /api/v1/metrics 200 metrics strict
GET /api/v1/stats 200,304 open rl strict
GET /health 200 open strict
GET /api/v1/health/deep 200 open rl strict
GET /api/v1/health/ready 200,503 open strict
GET /api/v1/version 200 open rl
GET /api/v1/changelog 200 open rl
GET /api/v1/openapi.json 200 open rl
POST /api/v1/usage 201 tenant idem rl pause
POST /api/v1/usage/bulk 201 tenant idem rl pause
POST /api/v1/settle 200 tenant idem rl pause
POST /api/v1/settle/bulk 200 tenant idem rl pause
GET /api/v1/usage/export.json 200 open rl
GET /api/v1/usage/export.csv 200 open rl
GET /api/v1/usage/:agent/:serviceId 200 open rl
DELETE /api/v1/usage/:agent/:serviceId 200 tenant idem rl pause
GET /api/v1/billing/total 200 open rl
GET /api/v1/billing/:agent/:serviceId 200 open rl
GET /api/v1/agents 200 open rl
GET /api/v1/agents/:agent/total 200 open rl
GET /api/v1/agents/:agent/usage 200 open rl
POST /api/v1/services 201,200 tenant idem rl pause
POST /api/v1/services/bulk 201 tenant idem rl pause
GET /api/v1/services 200,304 open rl
GET /api/v1/services/:serviceId 200 open rl
DELETE /api/v1/services/:serviceId 204 tenant idem rl pause
GET /api/v1/services/:serviceId/metadata 200 open rl
PUT /api/v1/services/:serviceId/metadata 200 tenant idem rl pause
PATCH /api/v1/services/:serviceId/price 200 tenant idem rl pause
PATCH /api/v1/services/:serviceId/disabled 200 tenant idem rl pause
POST /api/v1/services/:serviceId/disable 200 tenant idem rl pause
POST /api/v1/services/:serviceId/enable 200 tenant idem rl pause
GET /api/v1/services/:serviceId/usage 200 open rl
GET /api/v1/services/:serviceId/agents 200 open rl
GET /api/v1/services/:serviceId/agents/top 200 open rl
POST /api/v1/api-keys 201 operator rl pause
GET /api/v1/api-keys 200 operator rl strict
POST /api/v1/api-keys/:prefix/rotate 201 operator rl pause
DELETE /api/v1/api-keys/:prefix 204 operator rl pause
GET /api/v1/events 200,304 open rl strict
GET /api/v1/events/summary 200 open rl strict
POST /api/v1/webhooks 201 tenant rl pause
GET /api/v1/webhooks 200 open rl strict
GET /api/v1/webhooks/:id 200 open rl
PATCH /api/v1/webhooks/:id 200 tenant rl pause
POST /api/v1/webhooks/:id/rotate-secret 200 tenant rl pause
POST /api/v1/webhooks/:id/redeliver 200 tenant rl pause
DELETE /api/v1/webhooks/:id 204 tenant rl pause
POST /api/v1/webhooks/:id/test 200 tenant rl pause
GET /api/v1/webhooks/:id/deliveries 200 open rl strict
GET /api/v1/settlements 200 open rl strict
GET /api/v1/settlements/:id 200 open rl strict
GET /api/v1/idempotency/:key 200 open rl strict
";

fn rows() -> Vec<Vec<&'static str>> {
    let rows: Vec<Vec<&str>> = OPERATIONS.trim().lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(rows.len(), 63);
    rows
}

fn braced(path: &str) -> String {
    let segments = path.split('/').map(|segment| match segment.strip_prefix(':') {
        Some(name) => format!("{{{name}}}"),
        None => segment.to_owned(),
    });
    segments.collect::<Vec<_>>().join("/")
}

/// A mounted route in the words of the table, without its statuses.
fn told(route: &Route) -> Vec<&'static str> {
    let auth = match route.auth {
        Auth::Open => "open",
        Auth::Tenant => "tenant",
        Auth::Operator => "operator",
        Auth::Metrics => "metrics",
    };
    let flags =
        [("idem", route.idempotent), ("rl", route.limited), ("pause", route.pausable), ("strict", route.strict_query)];
    let applying = flags.into_iter().filter(|(_, applies)| *applies).map(|(name, _)| name);
    [route.method, route.pattern, auth].into_iter().chain(applying).collect()
}

#[test]
fn the_mounted_routes_are_these_operations() {
    let mounted: Vec<Vec<&str>> = ROUTES.iter().map(told).collect();
    let mut expected = rows();
    for row in &mut expected {
        row.remove(2);
    }
    assert_eq!(mounted, expected);
    let alone: Vec<&str> = ROUTES.iter().filter(|route| route.needs_no_database).map(|route| route.pattern).collect();
    assert_eq!(
        alone,
        [
            "/api/v1/admin/history",
            "/api/v1/metrics",
            "/health",
            "/api/v1/health/deep",
            "/api/v1/health/ready",
            "/api/v1/version",
            "/api/v1/changelog",
            "/api/v1/openapi.json"
        ]
    );
}

async fn document() -> Value {
    let service = Service::start(&[]).await;
    let answer = service.client().get("/api/v1/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type").as_str()), (200, "application/json; charset=utf-8"));
    assert_eq!(answer.text, service.client().get("/api/v1/openapi.json").await.text);
    answer.json()
}

/// What a `$ref` points to.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => {
            let found = document.pointer(reference.trim_start_matches('#'));
            found.unwrap_or_else(|| panic!("{reference} points nowhere"))
        }
        None => value,
    }
}

fn names<'a>(document: &'a Value, operation: &'a Value, place: &str) -> BTreeSet<&'a str> {
    let parameters = operation["parameters"].as_array().map_or([].as_slice(), Vec::as_slice);
    let parameters = parameters.iter().map(|parameter| resolve(document, parameter));
    parameters.filter(|parameter| parameter["in"] == place).filter_map(|parameter| parameter["name"].as_str()).collect()
}

#[tokio::test]
async fn the_document_has_these_operations_and_no_other() {
    let document = document().await;
    assert_eq!((&document["openapi"], &document["info"]["title"]), (&json!("3.1.0"), &json!("AgentPay Backend")));
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        described
            .extend(operations.as_object().expect("operations").keys().map(|method| (method.clone(), path.clone())));
    }
    let expected: BTreeSet<(String, String)> =
        rows().iter().map(|row| (row[0].to_lowercase(), braced(row[1]))).collect();
    assert_eq!(described, expected);
}

#[tokio::test]
async fn each_operation_tells_what_its_row_says() {
    let document = document().await;
    for row in rows() {
        let operation = &document["paths"][braced(row[1])][row[0].to_lowercase()];
        let what = format!("{} {}", row[0], row[1]);
        let has = |flag: &str| row[3..].contains(&flag);
        let responses = operation["responses"].as_object().expect("responses");
        let statuses: Vec<&str> = row[2].split(',').collect();
        for status in &statuses {
            assert!(responses.contains_key(*status), "{what}: {status}");
        }
        let successes = responses.keys().filter(|status| status.as_str() < "400").count();
        let expected = statuses.iter().filter(|status| **status < "400").count();
        assert_eq!(successes, expected, "{what}: no other success");

        let codes = |status: &str| -> Vec<&str> {
            operation["x-error-codes"][status].as_array().expect("codes").iter().filter_map(Value::as_str).collect()
        };
        assert_eq!(responses.contains_key("401"), !has("open"), "{what}: 401");
        assert_eq!(responses.contains_key("429"), has("rl") || !has("open"), "{what}: 429");
        if has("pause") {
            assert!(codes("503").contains(&"service_paused"), "{what}");
        }
        assert_eq!(names(&document, operation, "header").contains("Idempotency-Key"), has("idem"), "{what}");
        let conflicts = has("idem") || row[1].ends_with(":prefix/rotate");
        assert_eq!(responses.contains_key("409"), conflicts, "{what}: 409");
        let success = resolve(&document, &responses[statuses[0]]);
        assert_eq!(success["headers"].get("Idempotency-Replayed").is_some(), has("idem"), "{what}");
        assert_eq!(success["headers"].get("RateLimit-Limit").is_some(), has("rl"), "{what}");
        assert_eq!(success["headers"].get("ETag").is_some(), statuses.contains(&"304"), "{what}");
        let in_path: BTreeSet<&str> = row[1].split('/').filter_map(|segment| segment.strip_prefix(':')).collect();
        assert_eq!(names(&document, operation, "path"), in_path, "{what}");
    }
}

#[tokio::test]
async fn what_strict_routes_take_is_what_the_document_lists() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let document = client.get("/api/v1/openapi.json").await.json();
    for row in rows().iter().filter(|row| row.contains(&"strict")) {
        let operation = &document["paths"][braced(row[1])][row[0].to_lowercase()];
        let path = row[1].replace(":id", "x").replace(":key", "x");
        for name in names(&document, operation, "query") {
            let answer = client.get(&format!("{path}?{name}=1")).await;
            assert!(!answer.text.contains("unexpected query parameter"), "{path}: {name}");
        }
        let answer = client.get(&format!("{path}?unheard-of=1")).await;
        assert_eq!(answer.error().2, "unexpected query parameter: unheard-of", "{path}");
    }
}

#[tokio::test]
async fn strict_bodies_are_closed_and_money_is_exact() {
    let document = document().await;
    let closed: BTreeSet<String> = ROUTES
        .iter()
        .filter(|route| {
            let operation = &document["paths"][braced(route.pattern)][route.method.to_lowercase()];
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            resolve(&document, schema)["additionalProperties"] == false
        })
        .map(|route| format!("{} {}", route.method, route.pattern))
        .collect();
    let strict = [
        "PATCH /api/v1/config",
        "PATCH /api/v1/services/:serviceId/disabled",
        "PATCH /api/v1/webhooks/:id",
        "POST /api/v1/api-keys",
        "POST /api/v1/api-keys/:prefix/rotate",
        "POST /api/v1/services",
        "POST /api/v1/usage/bulk",
        "POST /api/v1/webhooks",
        "POST /api/v1/webhooks/:id/redeliver",
        "POST /api/v1/webhooks/:id/rotate-secret",
    ];
    assert_eq!(closed, strict.map(str::to_owned).into());
    let schemas = &document["components"]["schemas"];
    assert_eq!(
        schemas["Stroops"]["anyOf"],
        json!([
            { "type": "integer", "format": "int64", "minimum": 0, "maximum": 9_007_199_254_740_991_i64 },
            { "type": "string", "pattern": "^[0-9]+$" }
        ])
    );
    for (schema, members) in [
        ("SettledPair", ["billedStroops"].as_slice()),
        ("SettledAgent", &["totalBilledStroops"]),
        ("BillingTotal", &["totalStroops", "disabledStroops"]),
        ("Settlement", &["billedStroops"]),
        ("Quote", &["billedStroops"]),
    ] {
        for member in members {
            let property = &schemas[schema]["properties"][member];
            assert_eq!(property["$ref"], "#/components/schemas/Stroops", "{schema}.{member}");
        }
    }
    assert_eq!(schemas["Stats"]["properties"]["settledStroopsTotal"]["type"], "string");
}
