//! HTTP contract, sections 15.3 and 21.3: config and its cursors.

use crate::support::Service;

const PATH: &str = "/api/v1/config";
const DEFAULTS: &str = r#"{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,"usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000}"#;

#[tokio::test]
async fn the_config_is_paged_by_four() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let first = client.get(PATH).await;
    let items = r#"[{"key":"apiKeyStoreMaxKeys","value":10000},{"key":"bulkMaxItems","value":100},{"key":"eventLogCap","value":10000},{"key":"rateLimitPerWindow","value":60}]"#;
    let text = format!(r#"{{"config":{DEFAULTS},"items":{items},"total":8,"nextCursor":"cmF0ZUxpbWl0UGVyV2luZG93"}}"#);
    assert_eq!((first.status, first.text), (200, text));
    let second = client.get("/api/v1/config?cursor=cmF0ZUxpbWl0UGVyV2luZG93").await;
    let items = r#"[{"key":"rateLimitWindowMs","value":60000},{"key":"servicesStoreMaxKeys","value":10000},{"key":"usageStoreMaxKeys","value":100000},{"key":"webhookStoreMaxKeys","value":10000}]"#;
    assert_eq!(second.text, format!(r#"{{"config":{DEFAULTS},"items":{items},"total":8,"nextCursor":null}}"#));
    for (query, count, next) in [
        ("limit=1", 1, true),
        ("limit=0", 1, true),
        ("limit=99", 4, true),
        ("limit=abc", 4, true),
        ("cursor=d2ViaG9va1N0b3JlTWF4S2V5cw", 0, false),
    ] {
        let page = client.get(&format!("{PATH}?{query}")).await.json();
        assert_eq!(page["items"].as_array().expect("items").len(), count, "{query}");
        assert_eq!(page["nextCursor"].is_string(), next, "{query}");
    }
}

#[tokio::test]
async fn bad_queries_are_named() {
    let service = Service::start(&[]).await;
    for (query, message) in [
        ("cursor=!!", "cursor is malformed"),
        ("cursor=", "cursor is malformed"),
        ("cursor=bWlzc2luZy1rZXk", "cursor is invalid or expired"),
        ("x=1&cursor=!!", "unexpected query parameter: x"),
    ] {
        let error = service.client().get(&format!("{PATH}?{query}")).await.error();
        assert_eq!(error, (400, "invalid_request".to_owned(), message.to_owned()), "{query}");
    }
}

#[tokio::test]
async fn a_patch_changes_all_or_nothing() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let patch = async |body: &str| client.send("PATCH", PATH, Some(body)).await;
    assert_eq!(patch("{}").await.text, format!(r#"{{"config":{DEFAULTS}}}"#));
    assert_eq!(client.send("PATCH", PATH, None).await.text, format!(r#"{{"config":{DEFAULTS}}}"#));
    for (body, message) in [
        ("[]", "body must be a JSON object"),
        (r#"{"bulkMaxItems":0,"b":1,"a":2}"#, "unknown config keys: b, a"),
        (
            r#"{"apiKeyStoreMaxKeys":0,"rateLimitPerWindow":0}"#,
            "rateLimitPerWindow must be an integer between 1 and 1000000",
        ),
        (
            r#"{"bulkMaxItems":7,"rateLimitWindowMs":86400001}"#,
            "rateLimitWindowMs must be an integer between 1 and 86400000",
        ),
        (r#"{"bulkMaxItems":1001}"#, "bulkMaxItems must be an integer between 1 and 1000"),
        (r#"{"eventLogCap":1.5}"#, "eventLogCap must be an integer between 1 and 100000"),
        (r#"{"usageStoreMaxKeys":null}"#, "usageStoreMaxKeys must be an integer between 1 and 100000"),
        (r#"{"servicesStoreMaxKeys":"3"}"#, "servicesStoreMaxKeys must be an integer between 1 and 10000"),
        (r#"{"webhookStoreMaxKeys":true}"#, "webhookStoreMaxKeys must be an integer between 1 and 10000"),
        (r#"{"apiKeyStoreMaxKeys":-1}"#, "apiKeyStoreMaxKeys must be an integer between 1 and 10000"),
    ] {
        assert_eq!(patch(body).await.error(), (400, "invalid_request".to_owned(), message.to_owned()), "{body}");
    }
    let unknown = patch(r#"{"b":1,"bulkMaxItems":5,"a":2}"#).await;
    let id = unknown.header("x-request-id");
    let text = format!(
        r#"{{"error":"invalid_request","message":"unknown config keys: b, a","unknownKeys":["b","a"],"requestId":"{id}"}}"#
    );
    assert_eq!(unknown.text, text);
    assert_eq!(client.get(PATH).await.json()["config"]["bulkMaxItems"], 100);

    let changed =
        DEFAULTS.replace("\"bulkMaxItems\":100", "\"bulkMaxItems\":2").replace("LogCap\":10000", "LogCap\":300");
    let answer = patch(r#"{"eventLogCap":3e2,"bulkMaxItems":2.0}"#).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, format!(r#"{{"config":{changed}}}"#).as_str()));
    // In force at once, kept in the database, and no event.
    assert_eq!(
        (service.runtime_config.limits().bulk_max_items, service.runtime_config.limits().event_log_cap),
        (2, 300)
    );
    assert_eq!(service.number_at_home("SELECT bulk_max_items + event_log_cap FROM runtime_config").await, 302);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 0);
}

#[tokio::test]
async fn only_the_operator_changes_the_config() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let message = "valid ADMIN_API_KEY required for privileged writes".to_owned();
    let answer = service.client().with("x-api-key", "unknown").send("PATCH", PATH, Some("{")).await;
    assert_eq!(answer.error(), (401, "unauthorized".to_owned(), message));
    assert_eq!(service.client().with("x-api-key", "unknown").get(PATH).await.status, 200);
    assert_eq!(service.client().with("x-api-key", "admin").send("PATCH", PATH, Some("{}")).await.status, 200);
}
