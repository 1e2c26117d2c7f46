//! What only the operator reads, and how it acts for a tenant (HTTP contract, sections 3.2, 6.7 and 15.6).

use serde_json::{Value, json};

use crate::support::{Client, Service, usage, wait_until};

const TENANTS: &str = "/api/v1/admin/tenants";
const HISTORY: &str = "/api/v1/admin/history";
const SERVICES: &str = "/api/v1/services";
const WEBHOOKS: &str = "/api/v1/webhooks";
const GUARDED: &[(&str, &str)] = &[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin"), ("RATE_LIMIT", "on")];

async fn tenant(operator: &Client, service: &Service) -> (String, Client) {
    let made = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&made["tenantId"]), service.client().with("x-api-key", &text(&made["key"])))
}

#[tokio::test]
async fn the_operator_acts_for_the_tenant_that_it_names() {
    let service = Service::start(GUARDED).await;
    let operator = service.client().with("x-api-key", "admin");
    let (tenant_id, client) = tenant(&operator, &service).await;
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    client.key("k").post("/api/v1/usage", &usage("a", "s", 3)).await;
    client.key("b").post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;

    let acting = operator.with("x-tenant-id", &tenant_id);
    for path in ["/api/v1/settlements", "/api/v1/services", "/api/v1/agents", "/api/v1/events", WEBHOOKS] {
        let (theirs, shown, other) = (client.get(path).await, acting.get(path).await, operator.get(path).await);
        assert_eq!(shown.text, theirs.text, "{path}");
        assert!(path == WEBHOOKS || other.text != theirs.text, "{path}");
    }
    assert_eq!(acting.get("/api/v1/stats").await.text, client.get("/api/v1/stats").await.text);
    assert_eq!(operator.get("/api/v1/stats").await.json()["lifetimeRequests"], 3);
    // It writes for the tenant, and the audit log has who did it.
    let hook = json!({ "url": "https://example.com/hook", "events": ["*"] });
    assert_eq!(operator.post(WEBHOOKS, &hook).await.status, 401);
    assert_eq!(acting.post(WEBHOOKS, &hook).await.status, 201);
    assert_eq!(client.get(WEBHOOKS).await.json()["total"], 1);
    let entry = operator.get("/api/v1/audit?operation=webhook.created").await.json()["items"][0].clone();
    assert_eq!((&entry["actor"], &entry["tenantId"]), (&json!("admin"), &json!(tenant_id)));
    // Its keys are those of the tenant: a repetition is replayed, and the same key for another tenant is another key.
    assert_eq!(acting.get("/api/v1/idempotency/k").await.status, 200);
    let priced = |service: &str| json!({ "serviceId": service, "priceStroops": 4 });
    client.key("t").post(SERVICES, &priced("t")).await;
    assert!(acting.key("t").post(SERVICES, &priced("t")).await.replayed);
    let (other_id, _) = tenant(&operator, &service).await;
    for acting in [&acting, &operator.with("x-tenant-id", &other_id)] {
        let acted = acting.key("o").post(SERVICES, &priced("o")).await;
        assert_eq!((acted.status, acted.replayed), (201, false));
    }
    // The quota is that of its address.
    let remaining = async |client: &Client| {
        let answer = client.get("/api/v1/version").await;
        answer.header("ratelimit-remaining").parse::<i64>().expect("a number")
    };
    let theirs = remaining(&client).await;
    assert!(remaining(&acting).await < theirs - 1);
    assert_eq!(remaining(&client).await, theirs - 1);
    service.verify().await;
}

#[tokio::test]
async fn a_tenant_is_named_by_the_operator_only_and_must_exist() {
    let service = Service::start(GUARDED).await;
    let operator = service.client().with("x-api-key", "admin");
    let (first, client) = tenant(&operator, &service).await;
    let (_, other) = tenant(&operator, &service).await;
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    let none = r#"{"services":[]}"#;
    for stranger in [other, service.client(), service.client().with("x-api-key", "unknown")] {
        names_no_tenant(&stranger, &first).await;
        assert_eq!(stranger.with("x-tenant-id", "").get("/api/v1/services").await.text, none);
    }
    let named = |name: &str| operator.with("x-tenant-id", name);
    assert_eq!(named("").get("/api/v1/services").await.text, none);
    let missing = (404, "not_found".to_owned(), "no tenant with id tnt_x".to_owned());
    for path in ["/api/v1/services", WEBHOOKS, "/api/v1/stats"] {
        assert_eq!(named("tnt_x").get(path).await.error(), missing, "{path}");
    }
    assert_eq!(named("tnt_x").post("/api/v1/usage", &usage("a", "s", 1)).await.error(), missing);
    let twice = named(&first).with("x-tenant-id", &first).get("/api/v1/services").await.error();
    assert_eq!((twice.0, twice.2.as_str()), (400, "tenantId must be a string of 1-64 chars"));
    // Routes without the data of a tenant ignore it.
    for path in ["/api/v1/config", "/api/v1/version", "/api/v1/api-keys", TENANTS, HISTORY] {
        assert_eq!(named("tnt_x").get(path).await.status, 200, "{path}");
    }
}

/// Whoever is not the operator is refused, instead of reading or changing the data of another tenant than the named one.
async fn names_no_tenant(stranger: &Client, tenant_id: &str) {
    let stranger = stranger.with("x-tenant-id", tenant_id);
    let refused =
        |kind: &str| (401, "unauthorized".to_owned(), format!("valid ADMIN_API_KEY required for privileged {kind}"));
    for path in [SERVICES, WEBHOOKS, "/api/v1/stats"] {
        assert_eq!(stranger.get(path).await.error(), refused("reads"), "{path}");
    }
    assert_eq!(
        stranger.post(SERVICES, &json!({ "serviceId": "t", "priceStroops": 1 })).await.error(),
        refused("writes")
    );
    assert_eq!(stranger.post("/api/v1/usage", &usage("a", "s", 1)).await.error(), refused("writes"));
    assert_eq!(stranger.get("/api/v1/version").await.status, 200);
}

#[tokio::test]
async fn a_mistyped_admin_key_does_not_write_into_the_public_tenant() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let (tenant_id, client) = tenant(&service.client().with("x-api-key", "admin"), &service).await;
    for stranger in [service.client(), service.client().with("x-api-key", "admim"), client] {
        names_no_tenant(&stranger, &tenant_id).await;
    }
    assert_eq!(
        service.number("SELECT (SELECT count(*) FROM usage_counters) + (SELECT count(*) FROM services)").await,
        0
    );
    // Under a foreign name nobody is the operator.
    let foreign = service.client().with("x-api-key", "admin").with("host", "billing.example");
    let foreign = foreign.with("x-tenant-id", &tenant_id);
    assert_eq!((foreign.get(SERVICES).await.status, foreign.post(SERVICES, &json!({})).await.status), (401, 403));
}

#[tokio::test]
async fn the_operator_neither_meters_nor_settles_for_a_tenant() {
    let message = "the operator cannot record, reset or settle usage for a tenant: use a key of the tenant";
    for settings in [GUARDED, &[("ADMIN_API_KEY", "admin")], &[]] {
        let service = Service::start(settings).await;
        let operator = if settings.is_empty() { service.client() } else { service.client().with("x-api-key", "admin") };
        let (tenant_id, client) = tenant(&operator, &service).await;
        client.post(SERVICES, &json!({ "serviceId": "s", "priceStroops": 5 })).await;
        client.post("/api/v1/usage", &usage("a", "s", 3)).await;
        let acting = operator.with("x-tenant-id", &tenant_id);
        for (method, path, body) in [
            ("POST", "/api/v1/usage", r#"{"agent":"a","serviceId":"s","requests":1}"#),
            ("POST", "/api/v1/usage/bulk", r#"{"items":[{"agent":"a","serviceId":"s","requests":1}]}"#),
            ("POST", "/api/v1/settle", r#"{"agent":"a","serviceId":"s"}"#),
            ("POST", "/api/v1/settle/bulk", r#"{"agent":"a"}"#),
            ("DELETE", "/api/v1/usage/a/s", "{}"),
        ] {
            let refused = acting.send(method, path, Some(body)).await.error();
            assert_eq!((refused.0, refused.1.as_str(), refused.2.as_str()), (403, "forbidden", message), "{path}");
        }
        assert_eq!(client.get("/api/v1/usage/a/s").await.json()["total"], 3);
        assert_eq!(client.get("/api/v1/settlements").await.json()["items"], json!([]));
        if !settings.contains(&("REQUIRE_API_KEY", "true")) {
            assert_eq!(operator.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
        }
    }
}

#[tokio::test]
async fn tenants_are_listed_with_their_amounts() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let operator = service.client().with("x-api-key", "admin");
    let (tenant_id, client) = tenant(&operator, &service).await;
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    client.post("/api/v1/usage", &usage("a", "s", 3)).await;
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    client.post("/api/v1/usage", &usage("a", "s", 2)).await;
    client.post("/api/v1/usage", &usage("a", "unregistered", 7)).await;
    let list = operator.get(TENANTS).await.json();
    let empty = json!({
        "tenantId": "public", "requestsOutstanding": 0, "outstandingStroops": 0, "unpricedRequests": 0, "settlements": 0,
        "settledStroops": 0, "services": 0, "webhooks": 0, "apiKeys": 0
    });
    let filled = json!({
        "tenantId": tenant_id, "requestsOutstanding": 9, "outstandingStroops": 10, "unpricedRequests": 7, "settlements": 1,
        "settledStroops": 15, "services": 1, "webhooks": 0, "apiKeys": 1
    });
    assert_eq!(list, json!({ "items": [empty, filled], "nextCursor": null }));
    // In pages, in the order of their ids.
    for _ in 0..3 {
        tenant(&operator, &service).await;
    }
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = operator.get(&format!("{TENANTS}?limit=2{cursor}")).await.json();
        ids.extend(page["items"].as_array().expect("items").iter().map(|item| item["tenantId"].to_string()));
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(ids.len() == 5 && ids.is_sorted(), "{ids:?}");
    assert_eq!(operator.get(&format!("{TENANTS}?cursor=!!")).await.error().2, "cursor is malformed");
}

#[tokio::test]
async fn the_operator_reads_what_became_of_a_key() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin"), ("JANITOR_INTERVAL_MS", "3600000")]).await;
    let operator = service.client().with("x-api-key", "admin");
    let (tenant_id, client) = tenant(&operator, &service).await;
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    client.key("order-1").with("x-request-id", "r-1").post("/api/v1/usage", &usage("a", "s", 3)).await;
    let billed = client.key("bill/1").post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    service.client().key("order-1").post("/api/v1/usage", &usage("b", "s", 1)).await;

    let find = async |query: &str| operator.get(&format!("/api/v1/admin/idempotency/{query}")).await;
    let found = find(&format!("order-1?tenantId={tenant_id}")).await.json();
    let (created_at, expires_at) = (found["createdAt"].as_i64(), found["expiresAt"].as_i64());
    assert_eq!(expires_at.zip(created_at).map(|(expires, created)| expires - created), Some(86_400_000));
    assert_eq!(
        found,
        json!({
            "key": "order-1", "caller": format!("tenant:{tenant_id}"), "method": "POST", "path": "/api/v1/usage",
            "requestId": "r-1", "status": 201, "response": { "agent": "a", "serviceId": "s", "total": 3 },
            "createdAt": created_at, "expiresAt": expires_at, "isLive": true,
            "usage": [{ "agent": "a", "serviceId": "s", "requests": 3, "total": 3 }], "settlements": []
        })
    );
    let bill = find(&format!("bill%2F1?tenantId={tenant_id}")).await.json();
    assert_eq!((&bill["response"], &bill["settlements"][0]["billedStroops"]), (&billed.json(), &json!(15)));
    let keyless = find("order-1?address=127.0.0.1").await.json();
    assert_eq!((&keyless["caller"], &keyless["usage"][0]["agent"]), (&json!("ip:127.0.0.1"), &json!("b")));
    // An expired record is shown as such until it is deleted. Then only settlements are left.
    service.age_records(90_000_000).await;
    assert_eq!(find(&format!("bill%2F1?tenantId={tenant_id}")).await.json()["isLive"], false);
    service.run_janitors().await;
    let left = find(&format!("bill%2F1?tenantId={tenant_id}")).await.json();
    assert!(left.get("method").is_none() && left["settlements"].as_array().map(Vec::len) == Some(1), "{left}");
    assert_eq!(
        find(&format!("order-1?tenantId={tenant_id}")).await.error().2,
        "no request is recorded under this Idempotency-Key"
    );

    let one = "exactly one of tenantId and address is required";
    for query in ["order-1", "order-1?tenantId=", "order-1?tenantId=a&address=b", "order-1?tenantId=a&tenantId=b"] {
        let (status, code, message) = find(query).await.error();
        assert_eq!((status, code.as_str(), message.as_str()), (400, "invalid_request", one), "{query}");
    }
    assert_eq!(find("a%20b?tenantId=public").await.error().1, "invalid_idempotency_key");
}

#[tokio::test]
async fn the_history_has_a_sample_for_every_interval() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let operator = service.client().with("x-api-key", "admin");
    service.history_sampler.run_once(0);
    let mut round = 0;
    // The counters belong to the process: other tests count, too, and may reset them between two samples.
    let has_all = async || {
        round += 1;
        let began = service.clock.now().as_ms();
        service.clock.advance_ms(10_000);
        for _ in 0..2 {
            service.client().key(&format!("k{round}")).post("/api/v1/usage", &usage("a", "s", 1)).await;
        }
        service.history_sampler.run_once(4);
        let history = operator.get(&format!("{HISTORY}?since={}", began + 10_000)).await.json();
        let sample = history["samples"].as_array().and_then(|samples| samples.last()).expect("a sample").clone();
        let count = |name: &str| sample[name].as_i64().expect("a count");
        assert_eq!((count("queueDepth"), &history["intervalMs"]), (4, &json!(10_000)));
        assert!(sample["p50Ms"].as_f64().is_none_or(|ms| ms > 0.0 && ms <= 10_000.0), "{sample}");
        assert!(sample["p99Ms"].as_f64() >= sample["p50Ms"].as_f64(), "{sample}");
        count("requests") >= 2 && count("commands") >= 1 && count("replays") >= 1
    };
    wait_until(has_all).await;
    let history = operator.get(HISTORY).await.json();
    assert!(history["queueCapacity"].as_i64().is_some_and(|capacity| capacity > 0), "{history}");
    let later = operator.get(&format!("{HISTORY}?since=9007199254740991")).await.json();
    assert_eq!(later["samples"], json!([]));
}
