//! HTTP contract, section 17.1: GET stats.

use serde_json::{Value, json};

use crate::support::{Client, Service, usage};

const STATS: &str = "/api/v1/stats";
const EMPTY: &str = r#"{"totalServices":0,"totalApiKeys":0,"totalWebhooks":0,"usageKeys":0,"totalRequests":0,"lifetimeRequests":0,"uniqueAgents":0,"settledStroopsTotal":"0","settlementsTotal":0,"paused":false,"servicesBreakdown":[],"servicesBreakdownTotal":0,"nextServicesBreakdownCursor":null}"#;

/// A tenant of its own: its id and a client.
async fn tenant(service: &Service, operator: &Client) -> (String, Client) {
    let key = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let client = service.client().with("x-api-key", key["key"].as_str().expect("a key"));
    (key["tenantId"].as_str().expect("an id").to_owned(), client)
}

async fn register(client: &Client, id: &str, price: i64) {
    let made = client.post("/api/v1/services", &json!({ "serviceId": id, "priceStroops": price })).await;
    assert_eq!(made.status, 201, "{made:?}");
}

async fn record(client: &Client, agent: &str, service: &str, requests: i64) {
    assert_eq!(client.post("/api/v1/usage", &usage(agent, service, requests)).await.status, 201);
}

async fn stats(client: &Client) -> Value {
    client.get(STATS).await.json()
}

#[tokio::test]
async fn nothing_is_zeros_with_every_member_in_order() {
    let service = Service::start(&[]).await;
    let answer = service.client().get(STATS).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, EMPTY));
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    assert_eq!(
        (answer.header("cache-control").as_str(), answer.header("vary").as_str()),
        ("private, no-cache", "X-API-Key, X-Tenant-Id")
    );
    // The tenant's own key is one of its things.
    let (_, client) = tenant(&service, &service.client()).await;
    assert_eq!(client.get(STATS).await.text, EMPTY.replace(r#""totalApiKeys":0"#, r#""totalApiKeys":1"#));
    let refused = client.get("/api/v1/stats?page=1").await.error();
    assert_eq!((refused.0, refused.2.as_str()), (400, "unexpected query parameter: page"));
}

#[tokio::test]
async fn a_caller_sees_its_tenant_and_the_operator_sees_all_tenants() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let operator = service.client().with("x-api-key", "admin");
    let unknown = service.client().with("x-api-key", "unknown");
    let (first_id, first) = tenant(&service, &operator).await;
    let (second_id, second) = tenant(&service, &operator).await;
    for (client, price) in [(&first, 2), (&second, 3), (&operator, 5)] {
        register(client, "s", price).await;
        record(client, "one-name", "s", price).await;
        record(client, "one-name", "unregistered", 10).await;
    }
    let hook = json!({ "url": "https://example.com/hook", "events": ["webhook.test"] });
    assert_eq!(first.post("/api/v1/webhooks", &hook).await.status, 201);
    first.post("/api/v1/settle", &json!({ "agent": "one-name", "serviceId": "s" })).await;

    let own = format!(
        r#"{{"totalServices":1,"totalApiKeys":1,"totalWebhooks":1,"usageKeys":2,"totalRequests":10,"lifetimeRequests":12,"uniqueAgents":1,"settledStroopsTotal":"4","settlementsTotal":1,"paused":false,"servicesBreakdown":[{{"tenantId":"{first_id}","serviceId":"s","priceStroops":2,"requestsOutstanding":0}}],"servicesBreakdownTotal":1,"nextServicesBreakdownCursor":null}}"#
    );
    assert_eq!(first.get(STATS).await.text, own);
    let line = |tenant: &str, price: i64, outstanding: i64| {
        format!(
            r#"{{"tenantId":"{tenant}","serviceId":"s","priceStroops":{price},"requestsOutstanding":{outstanding}}}"#
        )
    };
    // Sorted by tenant, as the ids lead the lines.
    let mut lines = [line("public", 5, 5), line(&first_id, 2, 0), line(&second_id, 3, 3)];
    lines.sort();
    let lines = lines.join(",");
    // One name in three tenants is three agents.
    let all = format!(
        r#"{{"totalServices":3,"totalApiKeys":2,"totalWebhooks":1,"usageKeys":6,"totalRequests":38,"lifetimeRequests":40,"uniqueAgents":3,"settledStroopsTotal":"4","settlementsTotal":1,"paused":false,"servicesBreakdown":[{lines}],"servicesBreakdownTotal":3,"nextServicesBreakdownCursor":null}}"#
    );
    assert_eq!(operator.get(STATS).await.text, all);
    // An unknown key means the tenant public, not the operator. So does no key, where there is an operator key.
    for client in [&unknown, &service.client()] {
        let public = stats(client).await;
        assert_eq!(
            (&public["totalServices"], &public["usageKeys"], &public["uniqueAgents"], &public["totalApiKeys"]),
            (&json!(1), &json!(2), &json!(1), &json!(0))
        );
        assert_eq!(public["servicesBreakdown"][0]["tenantId"], "public");
    }
    service.verify().await;
}

#[tokio::test]
async fn figures_follow_settling_resetting_deleting_and_pausing() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let figures = async || {
        let stats = stats(&client).await;
        let names = ["usageKeys", "totalRequests", "lifetimeRequests", "settlementsTotal", "totalServices"];
        (names.map(|name| stats[name].as_i64().expect(name)), stats["settledStroopsTotal"].clone())
    };
    register(&client, "s", 9_007_199_254).await;
    record(&client, "a", "s", 1_000_000).await;
    record(&client, "a", "s", 1_000_000).await;
    record(&client, "b", "s", 7).await;
    assert_eq!(figures().await, ([2, 2_000_007, 2_000_007, 0, 1], json!("0")));
    let pair = json!({ "agent": "a", "serviceId": "s" });
    client.post("/api/v1/settle", &pair).await;
    // Text, whatever its size; a pair stays at zero.
    assert_eq!(figures().await, ([2, 7, 2_000_007, 1, 1], json!("18014398508000000")));
    // Nothing due still is a settlement; of settle/bulk it is none.
    client.post("/api/v1/settle", &pair).await;
    client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    client.post("/api/v1/settle", &json!({ "agent": "never", "serviceId": "seen" })).await;
    assert_eq!(figures().await, ([2, 7, 2_000_007, 3, 1], json!("18014398508000000")));
    client.send("DELETE", "/api/v1/usage/b/s", None).await;
    assert_eq!(figures().await, ([2, 0, 2_000_007, 3, 1], json!("18014398508000000")));
    record(&client, "b", "s", 2).await;
    client.send("DELETE", "/api/v1/services/s", None).await;
    assert_eq!(figures().await, ([2, 2, 2_000_009, 3, 0], json!("18014398508000000")));
    let gone = stats(&client).await;
    assert_eq!((&gone["servicesBreakdown"], &gone["uniqueAgents"]), (&json!([]), &json!(2)));
    client.send("POST", "/api/v1/admin/pause", None).await;
    assert_eq!(stats(&client).await["paused"], true);
    client.send("POST", "/api/v1/admin/unpause", None).await;
    assert_eq!(stats(&client).await["paused"], false);

    let hook = json!({ "url": "https://example.com/hook", "events": ["webhook.test"] });
    let id = client.post("/api/v1/webhooks", &hook).await.json()["id"].as_str().expect("an id").to_owned();
    let key = client.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let counts = async || {
        let stats = stats(&client).await;
        (stats["totalWebhooks"].clone(), stats["totalApiKeys"].clone())
    };
    assert_eq!(counts().await, (json!(1), json!(1)));
    client.send("DELETE", &format!("/api/v1/webhooks/{id}"), None).await;
    let prefix = &key["key"].as_str().expect("a key")[..12];
    client.send("DELETE", &format!("/api/v1/api-keys/{prefix}"), None).await;
    assert_eq!(counts().await, (json!(0), json!(0)));
    service.verify().await;
}

#[tokio::test]
async fn the_breakdown_is_paged_by_cursors_that_are_positions() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for id in ["svc-b", "svc-a", "Z", "svc-c"] {
        register(&client, id, 1).await;
    }
    let page = async |query: &str| {
        let stats = client.get(&format!("{STATS}{query}")).await.json();
        let lines = stats["servicesBreakdown"].as_array().expect("lines").clone();
        let ids: Vec<String> = lines.iter().map(|line| line["serviceId"].as_str().expect("an id").to_owned()).collect();
        assert_eq!(stats["servicesBreakdownTotal"], 4);
        (ids, stats["nextServicesBreakdownCursor"].as_str().map(str::to_owned))
    };
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    assert_eq!(page("").await, (ids(&["Z", "svc-a", "svc-b", "svc-c"]), None));
    // HTTP contract, section 21.3.
    let next = Some("cHVibGljOjpzdmMtYQ".to_owned());
    assert_eq!(page("?limit=2").await, (ids(&["Z", "svc-a"]), next));
    assert_eq!(page("?limit=2&cursor=cHVibGljOjpzdmMtYQ").await, (ids(&["svc-b", "svc-c"]), None));
    for (limit, count) in [("0", 1), ("-5", 1), ("x", 4), ("2.9", 2), ("501", 4)] {
        assert_eq!(page(&format!("?limit={limit}")).await.0.len(), count, "{limit}");
    }
    // Of a service that is gone, and of one that never was.
    client.send("DELETE", "/api/v1/services/svc-a", None).await;
    register(&client, "svc-d", 1).await;
    assert_eq!(page("?cursor=cHVibGljOjpzdmMtYQ").await.0, ids(&["svc-b", "svc-c", "svc-d"]));
    assert_eq!(page("?cursor=cHVibGljOjp6eno").await, (ids(&[]), None));
    for cursor in ["", "!!", "cHVibGljOjpzdmMtYQ=", "cHVibGlj"] {
        let refused = client.get(&format!("{STATS}?cursor={cursor}")).await.error();
        assert_eq!((refused.0, refused.2.as_str()), (400, "cursor is malformed"), "{cursor}");
    }
}

#[tokio::test]
async fn unchanged_figures_are_304_under_the_same_scope_limit_and_cursor_only() {
    let service = Service::start(&[]).await;
    let operator = service.client();
    let unknown = operator.with("x-api-key", "unknown");
    // Equal bodies: nothing but public has anything.
    register(&operator, "s", 1).await;
    let get = async |client: &Client, query: &str, known: &str| {
        let client = if known.is_empty() { client.clone() } else { client.with("if-none-match", known) };
        client.get(&format!("{STATS}{query}")).await
    };
    let first = get(&operator, "", "").await;
    let tag = first.header("etag");
    assert!(tag.starts_with("W/\"") && tag.ends_with('"'), "{tag}");
    for known in [tag.as_str(), "*", &format!("\"x\", {tag}"), tag.trim_start_matches("W/")] {
        let same = get(&operator, "", known).await;
        assert_eq!((same.status, same.text.as_str(), same.header("etag")), (304, "", tag.clone()), "{known}");
        assert_eq!((same.header("content-type"), same.header("content-length")), (String::new(), String::new()));
        assert_eq!(
            (same.header("vary").as_str(), same.header("cache-control").as_str()),
            ("X-API-Key, X-Tenant-Id", "private, no-cache")
        );
    }
    let head = operator.with("if-none-match", &tag).send("HEAD", STATS, None).await;
    assert_eq!((head.status, head.header("etag")), (304, tag.clone()));
    for (client, query) in [(&unknown, ""), (&operator, "?limit=1"), (&operator, "?limit=50&cursor=YTo6Yg")] {
        let other = get(client, query, &tag).await;
        assert_eq!((other.status, other.text == first.text), (200, true), "{query}");
        assert_ne!(other.header("etag"), tag, "{query}");
    }
    // The default limit is that limit.
    assert_eq!(get(&operator, "?limit=50", &tag).await.status, 304);
    record(&operator, "a", "s", 1).await;
    assert_eq!(get(&operator, "", &tag).await.status, 200);
}
