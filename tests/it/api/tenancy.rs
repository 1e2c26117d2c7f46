//! The data of one tenant does not exist for another, on any route: the answer is the one for names that do not exist,
//! and no row of it changes. A route of the table without a row here fails the test.

use agentpay_billing::api::route::Route;
use agentpay_billing::api::routes::ROUTES;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{Client, Receiver, Service, usage};

/// Method, pattern, path, body, status. `{…}` stands for a name: once one of the other tenant, and once one that does not exist.
const ROWS: &[(&str, &str, &str, &str, u16)] = &[
    ("POST", "/api/v1/admin/pause", "/api/v1/admin/pause", "", 401),
    ("POST", "/api/v1/admin/unpause", "/api/v1/admin/unpause", "", 401),
    ("GET", "/api/v1/admin/status", "/api/v1/admin/status", "", 200),
    ("POST", "/api/v1/admin/reset", "/api/v1/admin/reset", "", 401),
    ("GET", "/api/v1/admin/history", "/api/v1/admin/history", "", 401),
    ("GET", "/api/v1/admin/tenants", "/api/v1/admin/tenants", "", 401),
    ("GET", "/api/v1/admin/idempotency/:key", "/api/v1/admin/idempotency/{key}?tenantId={tenant}", "", 401),
    ("GET", "/api/v1/audit", "/api/v1/audit?tenantId={tenant}", "", 401),
    ("GET", "/api/v1/config", "/api/v1/config", "", 200),
    ("PATCH", "/api/v1/config", "/api/v1/config", r#"{"bulkMaxItems":1}"#, 401),
    ("GET", "/api/v1/metrics", "/api/v1/metrics", "", 200),
    ("GET", "/api/v1/stats", "/api/v1/stats", "", 200),
    ("GET", "/health", "/health", "", 200),
    ("GET", "/api/v1/health/deep", "/api/v1/health/deep", "", 200),
    ("GET", "/api/v1/health/ready", "/api/v1/health/ready", "", 200),
    ("GET", "/api/v1/version", "/api/v1/version", "", 200),
    ("GET", "/api/v1/changelog", "/api/v1/changelog", "", 200),
    ("GET", "/api/v1/openapi.json", "/api/v1/openapi.json", "", 200),
    ("POST", "/api/v1/usage", "/api/v1/usage", r#"{"agent":"{agent}","serviceId":"{service}","requests":5}"#, 201),
    (
        "POST",
        "/api/v1/usage/bulk",
        "/api/v1/usage/bulk",
        r#"{"items":[{"agent":"{agent}","serviceId":"{disabled}","requests":5}]}"#,
        201,
    ),
    ("POST", "/api/v1/settle", "/api/v1/settle", r#"{"agent":"{agent}","serviceId":"{service}"}"#, 200),
    ("POST", "/api/v1/settle/bulk", "/api/v1/settle/bulk", r#"{"agent":"{agent}"}"#, 200),
    ("GET", "/api/v1/usage/export.json", "/api/v1/usage/export.json", "", 200),
    ("GET", "/api/v1/usage/export.csv", "/api/v1/usage/export.csv", "", 200),
    ("GET", "/api/v1/usage/:agent/:serviceId", "/api/v1/usage/{agent}/{service}", "", 200),
    ("DELETE", "/api/v1/usage/:agent/:serviceId", "/api/v1/usage/{agent}/{service}", "", 404),
    ("GET", "/api/v1/billing/total", "/api/v1/billing/total", "", 200),
    ("GET", "/api/v1/billing/:agent/:serviceId", "/api/v1/billing/{agent}/{service}", "", 404),
    ("GET", "/api/v1/agents", "/api/v1/agents?page=1", "", 200),
    ("GET", "/api/v1/agents/:agent/total", "/api/v1/agents/{agent}/total", "", 200),
    ("GET", "/api/v1/agents/:agent/usage", "/api/v1/agents/{agent}/usage?page=1", "", 200),
    ("POST", "/api/v1/services", "/api/v1/services", r#"{"serviceId":"{service}","priceStroops":9}"#, 201),
    (
        "POST",
        "/api/v1/services/bulk",
        "/api/v1/services/bulk",
        r#"{"items":[{"serviceId":"{disabled}","priceStroops":9}]}"#,
        201,
    ),
    ("GET", "/api/v1/services", "/api/v1/services?q={service}&page=1", "", 200),
    ("GET", "/api/v1/services/:serviceId", "/api/v1/services/{service}", "", 404),
    ("DELETE", "/api/v1/services/:serviceId", "/api/v1/services/{service}", "", 404),
    ("GET", "/api/v1/services/:serviceId/metadata", "/api/v1/services/{service}/metadata", "", 404),
    (
        "PUT",
        "/api/v1/services/:serviceId/metadata",
        "/api/v1/services/{service}/metadata",
        r#"{"description":"d","owner":"o"}"#,
        404,
    ),
    ("PATCH", "/api/v1/services/:serviceId/price", "/api/v1/services/{service}/price", r#"{"priceStroops":1}"#, 404),
    (
        "PATCH",
        "/api/v1/services/:serviceId/disabled",
        "/api/v1/services/{service}/disabled",
        r#"{"disabled":true}"#,
        404,
    ),
    ("POST", "/api/v1/services/:serviceId/disable", "/api/v1/services/{service}/disable", "", 404),
    ("POST", "/api/v1/services/:serviceId/enable", "/api/v1/services/{disabled}/enable", "", 404),
    ("GET", "/api/v1/services/:serviceId/usage", "/api/v1/services/{service}/usage", "", 200),
    ("GET", "/api/v1/services/:serviceId/agents", "/api/v1/services/{service}/agents?page=1", "", 200),
    ("GET", "/api/v1/services/:serviceId/agents/top", "/api/v1/services/{service}/agents/top?page=1", "", 200),
    ("POST", "/api/v1/api-keys", "/api/v1/api-keys", r#"{"label":"l","tenantId":"{tenant}"}"#, 401),
    ("GET", "/api/v1/api-keys", "/api/v1/api-keys", "", 401),
    ("POST", "/api/v1/api-keys/:prefix/rotate", "/api/v1/api-keys/{prefix}/rotate", "", 401),
    ("DELETE", "/api/v1/api-keys/:prefix", "/api/v1/api-keys/{prefix}", "", 401),
    ("GET", "/api/v1/events", "/api/v1/events?type=usage.recorded", "", 200),
    ("GET", "/api/v1/events/summary", "/api/v1/events/summary", "", 200),
    (
        "POST",
        "/api/v1/webhooks",
        "/api/v1/webhooks",
        r#"{"url":"https://example.com/hook","events":["webhook.test"]}"#,
        201,
    ),
    ("GET", "/api/v1/webhooks", "/api/v1/webhooks", "", 200),
    ("GET", "/api/v1/webhooks/:id", "/api/v1/webhooks/{webhook}", "", 404),
    ("PATCH", "/api/v1/webhooks/:id", "/api/v1/webhooks/{webhook}", r#"{"events":["*"]}"#, 404),
    ("POST", "/api/v1/webhooks/:id/rotate-secret", "/api/v1/webhooks/{webhook}/rotate-secret", "", 404),
    ("POST", "/api/v1/webhooks/:id/redeliver", "/api/v1/webhooks/{webhook}/redeliver", r#"{"missedSince":0}"#, 404),
    ("DELETE", "/api/v1/webhooks/:id", "/api/v1/webhooks/{webhook}", "", 404),
    ("POST", "/api/v1/webhooks/:id/test", "/api/v1/webhooks/{webhook}/test", "", 404),
    ("GET", "/api/v1/webhooks/:id/deliveries", "/api/v1/webhooks/{webhook}/deliveries", "", 404),
    ("GET", "/api/v1/settlements", "/api/v1/settlements?agent={agent}&serviceId={service}", "", 200),
    ("GET", "/api/v1/settlements/:id", "/api/v1/settlements/{settlement}", "", 404),
    ("GET", "/api/v1/idempotency/:key", "/api/v1/idempotency/{key}", "", 404),
];

/// Names of the other tenant, and names that do not exist.
struct Names(Vec<(&'static str, String, String)>);

impl Names {
    fn theirs(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, theirs, _)| text.replace(name, theirs))
    }

    fn nobodys(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, _, nobodys)| text.replace(name, nobodys))
    }
}

/// Fills a tenant with one of everything.
async fn fill(client: &Client, tenant: String, prefix: String, receiver: &Receiver) -> Names {
    let described = r#"{"serviceId":"service-of-a","priceStroops":3,"description":"what-a-does","owner":"owner-of-a"}"#;
    let registered = client.send("POST", "/api/v1/services", Some(described)).await;
    assert_eq!(registered.status, 201, "{registered:?}");
    client.post("/api/v1/services", &json!({ "serviceId": "disabled-of-a", "priceStroops": 3 })).await;
    let record = usage("agent-of-a", "service-of-a", 7);
    for body in [&record, &usage("agent-of-a", "disabled-of-a", 2), &usage("agent-of-a", "free-of-a", 1)] {
        assert_eq!(client.post("/api/v1/usage", body).await.status, 201);
    }
    client.post("/api/v1/settle", &json!({ "agent": "agent-of-a", "serviceId": "service-of-a" })).await;
    client.key("key-of-a").post("/api/v1/usage", &record).await;
    client.send("POST", "/api/v1/services/disabled-of-a/disable", None).await;
    // After the last event but the test's own, so that no delivery is under way while rows are compared.
    let hook = json!({ "url": receiver.url, "events": ["service.deleted"] });
    let webhook = client.post("/api/v1/webhooks", &hook).await.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(client.send("POST", &format!("/api/v1/webhooks/{webhook}/test"), None).await.status, 200);
    let settlements = client.get("/api/v1/settlements").await.json();
    let settlement = settlements["items"][0]["id"].as_str().expect("an id").to_owned();
    let plain = |name, theirs: &str, nobodys: &str| (name, theirs.to_owned(), nobodys.to_owned());
    Names(vec![
        plain("{agent}", "agent-of-a", "agent-of-x"),
        plain("{service}", "service-of-a", "service-of-x"),
        plain("{disabled}", "disabled-of-a", "disabled-of-x"),
        plain("{key}", "key-of-a", "key-of-x"),
        plain("{tenant}", &tenant, "tnt_00000000000000000000000000000000"),
        plain("{prefix}", &prefix, "apk_00000000"),
        plain("{webhook}", &webhook, "wh_0000000000000000"),
        plain("{settlement}", &settlement, "stl_00000000000000000000000000000000"),
    ])
}

/// Every row of the database that belongs to the tenant.
async fn rows_of(service: &Service, tenant: &str) -> Vec<(String, Value)> {
    let tables: Vec<(String, String)> = sqlx::query_as(
        "SELECT table_name::text, column_name::text FROM information_schema.columns
         JOIN information_schema.tables USING (table_schema, table_name)
         WHERE table_schema = 'public' AND table_type = 'BASE TABLE'
           AND column_name IN ('tenant_id', 'caller', 'owner') AND (table_name, column_name) <> ('services', 'owner')
           -- Only of callers that are over a cap, and of tenants that live in another cell.
           AND table_name NOT IN ('full_callers', 'tenant_cells', 'tenant_moves')
         ORDER BY 1",
    )
    .fetch_all(&service.pool)
    .await
    .expect("tables");
    let mut found = Vec::new();
    for (table, column) in &tables {
        let rows = format!(
            "SELECT coalesce(jsonb_agg(shown ORDER BY shown::text), '[]') FROM {table} AS row,
             LATERAL (SELECT to_jsonb(row) - 'last_used_at' AS shown) AS shown
             WHERE row.{column} IN ('{tenant}', 'tenant:{tenant}')"
        );
        let mut all = Vec::new();
        for pool in service.pools() {
            let rows: Value = sqlx::query_scalar(AssertSqlSafe(rows.clone())).fetch_one(pool).await.expect("rows");
            all.extend(rows.as_array().expect("rows").clone());
        }
        assert!(!all.is_empty(), "the tenant has nothing in {table}");
        found.push((table.clone(), all.into()));
    }
    let names: Vec<&str> = found.iter().map(|(table, _)| table.as_str()).collect();
    assert_eq!(
        names,
        [
            "agents",
            "api_keys",
            "audit_log",
            "caller_totals",
            "event_runs",
            "idempotency_keys",
            "outbox",
            "services",
            "settlements",
            "tenants",
            "totals",
            "usage_counters",
            "webhook_deliveries",
            "webhook_queues",
            "webhooks"
        ]
    );
    found
}

#[tokio::test]
async fn no_caller_sees_or_changes_the_data_of_another_tenant() {
    // As a tenant with a key of its own, and as the tenant public without the rights of the operator.
    for has_key in [true, false] {
        let service = Service::start(&[("ADMIN_API_KEY", "admin"), ("WEBHOOK_ALLOW_PRIVATE", "true")]).await;
        let operator = service.client().with("x-api-key", "admin");
        let mut keys = Vec::new();
        for label in ["label-of-a", "label-of-b"] {
            keys.push(operator.post("/api/v1/api-keys", &json!({ "label": label })).await.json());
        }
        let text = |key: &Value, name: &str| key[name].as_str().expect("text").to_owned();
        let (tenant, key) = (text(&keys[0], "tenantId"), text(&keys[0], "key"));
        let receiver = Receiver::start().await;
        let first = service.client().with("x-api-key", &key);
        let names = fill(&first, tenant.clone(), key[..12].to_owned(), &receiver).await;
        let key = if has_key { text(&keys[1], "key") } else { "unknown".to_owned() };
        let second = service.client().with("x-api-key", &key);
        // As while events wait for the dispatcher, which rests here.
        let turns = service.jobs.iter().map(|jobs| jobs.dispatcher.turn.clone().lock_owned());
        let _turns = futures_util::future::join_all(turns).await;
        let waiting = "INSERT INTO outbox (tenant_id, position, recorded_at, type, payload)
                SELECT tenant_id, event_position, created_at, type, payload FROM webhook_deliveries;
            INSERT INTO webhook_queues (tenant_id, webhook_id, due_at)
                SELECT tenant_id, webhook_id, created_at FROM webhook_deliveries";
        for pool in service.pools() {
            sqlx::raw_sql(waiting).execute(pool).await.expect("rows");
        }
        let before = rows_of(&service, &tenant).await;

        let find = |route: &Route| ROWS.iter().find(|row| (row.0, row.1) == (route.method, route.pattern));
        let rows = ROUTES.iter().map(|route| *find(route).unwrap_or_else(|| panic!("no row for {route:?}")));
        let mut rows: Vec<_> = rows.collect();
        // What succeeds comes last: after it the second tenant has things of its own by the same names.
        rows.sort_by_key(|(method, .., status)| (*method != "GET", *status < 400));
        let mut sent: Vec<String> = Vec::new();
        for (method, _, path, body, status) in rows {
            let send = async |name: &dyn Fn(&str) -> String| {
                let body = (!body.is_empty()).then(|| name(body));
                second.with("x-request-id", "r").send(method, &name(path), body.as_deref()).await
            };
            let about_theirs = send(&|text| names.theirs(text)).await;
            let about_nobodys = send(&|text| names.nobodys(text)).await;
            let case = format!("{method} {path}: {about_theirs:?}");
            assert_eq!((about_theirs.status, about_nobodys.status), (status, status), "{case}");
            let speaks_of_names = path.contains('{') || body.contains('{');
            if speaks_of_names && !path.contains("/webhooks") || status == 404 {
                assert_eq!(about_theirs.text, renamed(&names, &about_nobodys.text), "{case}");
            }
            // What a request does not say itself no answer says either; of writes, what they have said so far.
            if method == "GET" {
                sent.clear();
            }
            sent.extend([names.theirs(path), names.theirs(body)]);
            let told = names.0.iter().map(|(_, theirs, _)| theirs.as_str());
            for told in told.chain(["free-of-a", "owner-of-a", "what-a-does", "label-of-a", receiver.url.as_str()]) {
                assert!(
                    sent.iter().any(|sent| sent.contains(told)) || !about_theirs.text.contains(told),
                    "{told} in {case}"
                );
            }
            assert!(rows_of(&service, &tenant).await == before, "rows changed by {case}");
        }
        assert_eq!(receiver.received().len(), 1, "the receiver got more than its own test");
        service.verify().await;
    }
}

/// The text with the names of the other tenant.
fn renamed(names: &Names, text: &str) -> String {
    names.0.iter().fold(text.to_owned(), |text, (_, theirs, nobodys)| text.replace(nobodys, theirs))
}

/// The numbers of an empty tenant, whatever others have.
#[tokio::test]
async fn lists_and_sums_of_a_new_tenant_are_empty() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin"), ("WEBHOOK_ALLOW_PRIVATE", "true")]).await;
    let operator = service.client().with("x-api-key", "admin");
    let receiver = Receiver::start().await;
    fill(&operator, String::new(), String::new(), &receiver).await;
    let key = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let tenant = service.client().with("x-api-key", key["key"].as_str().expect("a key"));
    for (path, body) in [
        ("/api/v1/usage/export.csv", "agent,serviceId,total\n"),
        ("/api/v1/billing/total", r#"{"totalStroops":0,"disabledStroops":0,"unpricedRequests":0}"#),
        ("/api/v1/agents", r#"{"agents":[]}"#),
        ("/api/v1/agents?page=1", r#"{"agents":[],"page":1,"pageCount":1}"#),
        ("/api/v1/agents/agent-of-a/total", r#"{"agent":"agent-of-a","total":0}"#),
        ("/api/v1/agents/agent-of-a/usage", r#"{"agent":"agent-of-a","items":[]}"#),
        ("/api/v1/services", r#"{"services":[]}"#),
        ("/api/v1/services/service-of-a/usage", r#"{"serviceId":"service-of-a","total":0,"agents":0}"#),
        ("/api/v1/services/service-of-a/agents", r#"{"serviceId":"service-of-a","items":[]}"#),
        ("/api/v1/services/service-of-a/agents/top", r#"{"serviceId":"service-of-a","items":[]}"#),
        ("/api/v1/usage/agent-of-a/service-of-a", r#"{"agent":"agent-of-a","serviceId":"service-of-a","total":0}"#),
        ("/api/v1/events", r#"{"total":0,"items":[],"nextCursor":null}"#),
        ("/api/v1/events/summary", r#"{"counts":{},"total":0}"#),
        ("/api/v1/webhooks", r#"{"items":[],"total":0,"nextCursor":null}"#),
        ("/api/v1/settlements", r#"{"items":[],"nextCursor":null}"#),
    ] {
        assert_eq!(tenant.get(path).await.text, body, "{path}");
    }
    let export = tenant.get("/api/v1/usage/export.json").await.json();
    assert_eq!(export["items"], json!([]));
    // A cursor of another tenant's log leads nowhere.
    let page = operator.get("/api/v1/events?limit=1").await.json();
    let cursor = page["nextCursor"].as_str().expect("a cursor");
    let refused = tenant.get(&format!("/api/v1/events?cursor={cursor}")).await.error();
    assert_eq!((refused.0, refused.2.as_str()), (400, "cursor is invalid or expired"));
}
