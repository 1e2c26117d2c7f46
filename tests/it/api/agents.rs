//! HTTP contract, section 10.5: reads of agents, with their exact bodies.

use serde_json::json;

use crate::support::{Service, usage};

const IDS: &str = "agent and serviceId must be safe identifiers";

#[tokio::test]
async fn agents_are_listed_as_first_seen_zero_included() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.get("/api/v1/agents").await.text, r#"{"agents":[]}"#);
    assert_eq!(client.get("/api/v1/agents?page=2").await.text, r#"{"agents":[],"page":2,"pageCount":1}"#);
    for (agent, service_id) in [("z", "s"), ("b", "s"), ("a", "t"), ("z", "t"), ("b", "u")] {
        client.post("/api/v1/usage", &usage(agent, service_id, 1)).await;
    }
    client.post("/api/v1/settle/bulk", &json!({ "agent": "z" })).await;
    for (query, answer) in [
        ("", r#"{"agents":["z","b","a"]}"#),
        ("?limit=2", r#"{"agents":["z","b"]}"#),
        ("?limit=2&page=2", r#"{"agents":["a"],"page":2,"pageCount":2}"#),
        ("?limit=3&page=1", r#"{"agents":["z","b","a"],"page":1,"pageCount":1}"#),
        ("?limit=1&page=4", r#"{"agents":[],"page":4,"pageCount":3}"#),
        ("?limit=0&unknown=1", r#"{"agents":["z"]}"#),
    ] {
        let given = client.get(&format!("/api/v1/agents{query}")).await;
        assert_eq!((given.status, given.text.as_str()), (200, answer), "{query}");
    }
}

#[tokio::test]
async fn usage_of_an_agent_is_shown_in_sum_and_by_service() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (service_id, requests) in [("z", 2), ("b", 3), ("a", 4)] {
        client.post("/api/v1/usage", &usage("one", service_id, requests)).await;
    }
    client.post("/api/v1/settle", &json!({ "agent": "one", "serviceId": "b" })).await;
    for (path, answer) in [
        ("one/total", r#"{"agent":"one","total":6}"#),
        ("nobody/total", r#"{"agent":"nobody","total":0}"#),
        ("nobody/usage", r#"{"agent":"nobody","items":[]}"#),
        ("nobody/usage?page=1", r#"{"agent":"nobody","items":[],"page":1,"pageCount":1}"#),
        (
            "one/usage?limit=1",
            r#"{"agent":"one","items":[{"serviceId":"z","total":2},{"serviceId":"b","total":0},{"serviceId":"a","total":4}]}"#,
        ),
        ("one/usage?limit=2&page=2", r#"{"agent":"one","items":[{"serviceId":"a","total":4}],"page":2,"pageCount":2}"#),
        ("one/usage?limit=2&page=3", r#"{"agent":"one","items":[],"page":3,"pageCount":2}"#),
    ] {
        let given = client.get(&format!("/api/v1/agents/{path}")).await;
        assert_eq!((given.status, given.text.as_str()), (200, answer), "{path}");
    }
    for path in ["a%20b/total", "a%2Fb/usage", &format!("{}/total", "a".repeat(257))] {
        let refused = client.get(&format!("/api/v1/agents/{path}")).await.error();
        assert_eq!(refused, (400, "invalid_request".to_owned(), IDS.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn sums_are_exact_and_saturate_only_when_shown() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for service_id in ["s", "t", "u"] {
        client.post("/api/v1/usage", &usage("a", service_id, 1)).await;
    }
    // Three counters whose sum is longer than 64 bits.
    sqlx::query("UPDATE usage_counters SET outstanding = 9223372036854775807")
        .execute(&service.pool)
        .await
        .expect("counters");
    assert_eq!(client.get("/api/v1/agents/a/total").await.text, r#"{"agent":"a","total":9007199254740991}"#);
    sqlx::query("UPDATE totals SET outstanding = 9223372036854775807").execute(&service.pool).await.expect("totals");
    let sums = client.get("/api/v1/services/s/usage").await.text;
    assert_eq!(sums, r#"{"serviceId":"s","total":9007199254740991,"agents":1}"#);
}

#[tokio::test]
async fn agents_of_another_tenant_do_not_exist() {
    let service = Service::start(&[]).await;
    let anyone = service.client();
    let made = anyone.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let tenant = anyone.with("x-api-key", made["key"].as_str().expect("a key"));
    tenant.post("/api/v1/usage", &usage("mine", "s", 1)).await;
    assert_eq!(anyone.get("/api/v1/agents").await.text, r#"{"agents":[]}"#);
    assert_eq!(anyone.get("/api/v1/agents/mine/total").await.text, r#"{"agent":"mine","total":0}"#);
    assert_eq!(anyone.get("/api/v1/agents/mine/usage").await.text, r#"{"agent":"mine","items":[]}"#);
    assert_eq!(tenant.get("/api/v1/agents").await.text, r#"{"agents":["mine"]}"#);
}

#[tokio::test]
async fn a_list_that_is_too_long_to_be_whole_is_refused_and_can_be_read_in_pages() {
    let service = Service::start(&[]).await;
    let sql = "WITH agents AS (INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a'))
               INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
               SELECT 'public', 'a', 's' || number, 1, 1 FROM generate_series(1, 100000) AS number";
    sqlx::query(sql).execute(&service.pool).await.expect("pairs");
    let client = service.client();
    let whole = client.get("/api/v1/agents/a/usage").await.json();
    assert_eq!(whole["items"].as_array().map(Vec::len), Some(100_000));
    assert_eq!(client.post("/api/v1/usage", &usage("a", "one-more", 1)).await.status, 201);
    let message = "the list has more than 100000 items: read it with page and limit".to_owned();
    let refused = client.get("/api/v1/agents/a/usage").await.error();
    assert_eq!(refused, (400, "invalid_request".to_owned(), message));
    let page = client.get("/api/v1/agents/a/usage?limit=1000&page=101").await;
    assert_eq!(page.text, r#"{"agent":"a","items":[{"serviceId":"one-more","total":1}],"page":101,"pageCount":101}"#);
}
