//! HTTP contract, section 10: usage, settlement and the ledger.

use serde_json::json;

use crate::support::{Service, usage};

const USAGE: &str = "/api/v1/usage";

#[tokio::test]
async fn a_settlement_drains_the_pair_at_the_current_price_and_is_kept() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 9_007_199_254_i64 })).await;
    client.post(USAGE, &usage("a", "s", 1_000_000)).await;
    client.post(USAGE, &usage("a", "s", 1_000_000)).await;
    let quote = client.get("/api/v1/billing/a/s").await;
    let settled = client.key("bill").post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    let expected = r#"{"agent":"a","serviceId":"s","requests":2000000,"priceStroops":9007199254,"billedStroops":"18014398508000000"}"#;
    assert_eq!((quote.text.as_str(), settled.text.as_str()), (expected, expected));
    assert_eq!(client.get("/api/v1/usage/a/s").await.text, r#"{"agent":"a","serviceId":"s","total":0}"#);
    let page = client.get("/api/v1/settlements").await.json();
    let bill = &page["items"][0];
    assert_eq!((&bill["billedStroops"], &bill["idempotencyKey"]), (&json!("18014398508000000"), &json!("bill")));
    assert_eq!(bill["requestId"].as_str(), settled.headers["x-request-id"].to_str().ok());
    let id = bill["id"].as_str().expect("an id");
    assert_eq!(client.get(&format!("/api/v1/settlements/{id}")).await.json(), *bill);
    // Nothing due: answered and counted, without a settlement; an unknown pair is not created.
    for service_id in ["s", "never"] {
        let again = client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": service_id })).await.json();
        assert_eq!((&again["requests"], &again["billedStroops"]), (&json!(0), &json!(0)));
    }
    assert_eq!(service.number("SELECT count(*) FROM settlements").await, 1);
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 1);
    assert_eq!(
        service
            .number("SELECT sum(settlements)::bigint FROM totals WHERE tenant_id = 'public' AND service_id = ''")
            .await,
        3
    );
    service.verify().await;
}

#[tokio::test]
async fn settling_an_agent_lists_every_pair_and_settles_what_is_due() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "two", "priceStroops": 3 })).await;
    for (service_id, requests) in [("two", 5), ("one", 4), ("zero", 1)] {
        client.post(USAGE, &usage("a", service_id, requests)).await;
    }
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "zero" })).await;
    let settled = client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    assert_eq!(
        settled.text,
        concat!(
            r#"{"agent":"a","items":[{"serviceId":"two","requests":5,"priceStroops":3,"billedStroops":15},"#,
            r#"{"serviceId":"one","requests":4,"priceStroops":0,"billedStroops":0},"#,
            r#"{"serviceId":"zero","requests":0,"priceStroops":0,"billedStroops":0}],"totalBilledStroops":15}"#
        )
    );
    assert_eq!(service.number("SELECT count(*) FROM settlements").await, 3);
    let none = client.post("/api/v1/settle/bulk", &json!({ "agent": "nobody" })).await;
    assert_eq!(none.text, r#"{"agent":"nobody","items":[],"totalBilledStroops":0}"#);
    // Pages of the ledger join without gap.
    let first = client.get("/api/v1/settlements?limit=2").await.json();
    let cursor = first["nextCursor"].as_str().expect("a cursor");
    let second = client.get(&format!("/api/v1/settlements?limit=2&cursor={cursor}")).await.json();
    assert_eq!((first["items"].as_array().map(Vec::len), second["items"].as_array().map(Vec::len)), (Some(2), Some(1)));
    assert_eq!(second["nextCursor"], json!(null));
    service.verify().await;
}

#[tokio::test]
async fn a_reset_clears_the_pair_without_a_bill() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let unknown = client.send("DELETE", "/api/v1/usage/a/s", None).await.error();
    assert_eq!(unknown, (404, "not_found".to_owned(), "no usage recorded for a/s".to_owned()));
    client.post(USAGE, &usage("a", "s", 7)).await;
    let cleared = client.key("reset").send("DELETE", "/api/v1/usage/a/s", Some("ignored")).await;
    assert_eq!((cleared.status, cleared.text.as_str()), (200, r#"{"agent":"a","serviceId":"s","clearedTotal":7}"#));
    assert!(client.key("reset").send("DELETE", "/api/v1/usage/a/s", None).await.same(&cleared));
    let again = client.send("DELETE", "/api/v1/usage/a/s", None).await;
    assert_eq!(again.json()["clearedTotal"], 0);
    assert_eq!(client.get("/api/v1/usage/a/s").await.json()["total"], 0);
    let invalid = client.send("DELETE", "/api/v1/usage/a%20/s", None).await.error();
    assert_eq!((invalid.0, invalid.2.as_str()), (400, "agent and serviceId must be safe identifiers"));
    assert_eq!(service.number("SELECT reset FROM usage_counters").await, 7);
    assert_eq!(service.number("SELECT count(*) FROM settlements").await, 0);
    let payloads = "SELECT count(*) FROM events WHERE type = 'usage.reset' AND payload::text = \
                    '{\"agent\":\"a\",\"serviceId\":\"s\",\"clearedTotal\":7}'";
    assert_eq!(service.number(payloads).await, 1);
    service.verify().await;
}

#[tokio::test]
async fn the_billing_total_sums_what_is_due_at_current_prices() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let none = r#"{"totalStroops":0,"disabledStroops":0,"unpricedRequests":0}"#;
    assert_eq!(client.get("/api/v1/billing/total").await.text, none);
    for (service_id, price) in [("big", 9_007_199_254_i64), ("off", 5)] {
        client.post("/api/v1/services", &json!({ "serviceId": service_id, "priceStroops": price })).await;
    }
    let items = json!({ "items": [usage("a", "big", 1_000_000), usage("b", "big", 1_000_000), usage("a", "off", 3),
                                  usage("a", "unknown", 4)] });
    client.post("/api/v1/usage/bulk", &items).await;
    client.send("POST", "/api/v1/services/off/disable", None).await;
    assert_eq!(
        client.get("/api/v1/billing/total").await.text,
        r#"{"totalStroops":"18014398508000015","disabledStroops":15,"unpricedRequests":4}"#
    );
    client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    assert_eq!(
        client.get("/api/v1/billing/total").await.text,
        r#"{"totalStroops":9007199254000000,"disabledStroops":0,"unpricedRequests":0}"#
    );
    service.verify().await;
}

#[tokio::test]
async fn a_bulk_request_answers_each_item_in_its_place() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "off", "priceStroops": 1 })).await;
    client.send("POST", "/api/v1/services/off/disable", None).await;
    let items =
        json!({ "items": [usage("a", "s", 2), null, usage("a", "off", 1), usage("a", "s", 3), usage("a", "s", 0)] });
    let answer = client.key("bulk").post("/api/v1/usage/bulk", &items).await;
    assert_eq!(
        answer.text,
        concat!(
            r#"{"results":[{"index":0,"ok":true,"total":2},{"index":1,"ok":false,"error":"invalid_item"},"#,
            r#"{"index":2,"ok":false,"error":"service_disabled"},{"index":3,"ok":true,"total":5},"#,
            r#"{"index":4,"ok":false,"error":"invalid_item"}]}"#
        )
    );
    assert!(client.key("bulk").post("/api/v1/usage/bulk", &items).await.same(&answer));
    assert_eq!(service.number("SELECT outstanding + settled + reset FROM usage_counters").await, 5);
    service.verify().await;
}

#[tokio::test]
async fn new_pairs_of_one_request_are_listed_in_its_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let items = json!({ "items": [usage("a", "z", 1), usage("a", "b", 1), usage("a", "z", 1), usage("a", "m", 1)] });
    client.post("/api/v1/usage/bulk", &items).await;
    let settled = client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await.json();
    let listed = settled["items"].as_array().expect("items").iter().map(|item| item["serviceId"].clone());
    assert_eq!(listed.collect::<Vec<_>>(), ["z", "b", "m"]);
}

#[tokio::test]
async fn every_refusal_of_a_body_has_its_exact_words() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let service_id = "serviceId must be 1-128 chars using only letters, numbers, dot, underscore, or hyphen";
    let requests = "requests must be a positive integer";
    let price = "priceStroops must be a non-negative integer within supported bounds";
    for (path, body, message) in [
        (USAGE, "{", "Malformed JSON in request body"),
        (USAGE, "[]", "agent must be a safe identifier"),
        (USAGE, r#"{"agent":"a b"}"#, "agent must be a safe identifier"),
        (USAGE, r#"{"agent":"a"}"#, service_id),
        (USAGE, r#"{"agent":"a","serviceId":"s","requests":0}"#, requests),
        (USAGE, r#"{"agent":"a","serviceId":"s","requests":1000001}"#, requests),
        (USAGE, r#"{"agent":"a","serviceId":"s","requests":"3"}"#, requests),
        (USAGE, r#"{"agent":"\u0000"}"#, "text must not contain U+0000"),
        ("/api/v1/usage/bulk", "[]", "body must be a JSON object"),
        ("/api/v1/usage/bulk", r#"{"x":1,"items":[]}"#, "unexpected field: x"),
        ("/api/v1/usage/bulk", r#"{"items":[]}"#, "items must be a non-empty array of up to 100 entries"),
        ("/api/v1/settle", r#"{"agent":"a"}"#, "agent and serviceId must be safe identifiers"),
        ("/api/v1/settle/bulk", "{}", "agent must be a safe identifier"),
        ("/api/v1/services", r#"{"serviceId":"s"}"#, price),
        ("/api/v1/services", r#"{"serviceId":"s","priceStroops":9007199255}"#, price),
        (
            "/api/v1/services",
            r#"{"serviceId":"s","priceStroops":1,"owner":"o"}"#,
            "description must be a string up to 256 chars",
        ),
        (
            "/api/v1/services",
            r#"{"serviceId":"s","priceStroops":1,"description":""}"#,
            "owner must be a non-empty string up to 256 chars",
        ),
        ("/api/v1/api-keys", r#"{"label":" "}"#, "label must be a non-empty string up to 64 chars"),
        ("/api/v1/api-keys", r#"{"label":"x","tenantId":""}"#, "tenantId must be a string of 1-64 chars"),
    ] {
        let answer = client.send("POST", path, Some(body)).await.error();
        assert_eq!(answer, (400, "invalid_request".to_owned(), message.to_owned()), "{path} {body}");
    }
    let plain = client.with("content-type", "text/plain").send("POST", USAGE, Some("x")).await.error();
    assert_eq!((plain.0, plain.1.as_str()), (415, "unsupported_media_type"));
    let large = client.send("POST", USAGE, Some(&" ".repeat(102_401))).await.error();
    assert_eq!((large.0, large.2.as_str()), (413, "request body exceeds the 100 KiB limit"));
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 0);
}

#[tokio::test]
async fn with_required_keys_writes_need_one_and_operator_routes_the_admin_key() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "root-secret")]).await;
    let anyone = service.client();
    let admin = anyone.with("x-api-key", "root-secret");
    let refused = anyone.post(USAGE, &usage("a", "s", 1)).await.error();
    assert_eq!((refused.0, refused.2.as_str()), (401, "valid X-API-Key required for write request"));
    assert_eq!(admin.post(USAGE, &usage("a", "s", 1)).await.status, 401);
    let made = admin.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let tenant = anyone.with("x-api-key", made["key"].as_str().expect("a key"));
    assert_eq!(tenant.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    assert_eq!(tenant.get("/api/v1/api-keys").await.error().2, "valid ADMIN_API_KEY required for privileged reads");
    let refused = tenant.post("/api/v1/api-keys", &json!({ "label": "x" })).await.error();
    assert_eq!(refused.2, "valid ADMIN_API_KEY required for privileged writes");
    // Another tenant's usage does not exist for the public.
    assert_eq!(anyone.get("/api/v1/usage/a/s").await.json()["total"], 0);
    assert_eq!(tenant.get("/api/v1/usage/a/s").await.json()["total"], 1);
    assert_eq!(service.number("SELECT count(*) FROM api_keys WHERE key_hash = sha256('x')").await, 0);
}

#[tokio::test]
async fn migrations_go_up_down_and_up_again() {
    use agentpay_billing::store::MIGRATOR;
    let service = Service::start(&[]).await;
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') \
                  AND relname <> '_sqlx_migrations'";
    let before = service.number_at_home(tables).await;
    MIGRATOR.undo(&service.pool, 0).await.expect("down");
    assert_eq!(service.number_at_home(tables).await, 0);
    MIGRATOR.run(&service.pool).await.expect("up");
    assert!(before > 0 && service.number_at_home(tables).await == before);
}
