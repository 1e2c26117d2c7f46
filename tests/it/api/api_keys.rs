//! HTTP contract, sections 12 and 9.1: API keys and their list.

use serde_json::{Value, json};

use crate::support::{Client, Service, usage};

const KEYS: &str = "/api/v1/api-keys";

async fn make(client: &Client, body: Value) -> Value {
    let made = client.post(KEYS, &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()
}

#[tokio::test]
async fn a_key_creates_a_tenant_or_joins_one_and_is_shown_once() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let made = client.key("ignored").post(KEYS, &json!({ "label": " as sent \u{1F511}" })).await;
    let body = made.json();
    let (key, tenant) = (body["key"].as_str().expect("a key"), body["tenantId"].as_str().expect("an id"));
    assert_eq!(made.text, format!(r#"{{"key":"{key}","label":" as sent 🔑","tenantId":"{tenant}"}}"#));
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    assert!(key.len() == 36 && key.starts_with("apk_") && hex(&key[4..]), "{key}");
    assert!(tenant.len() == 36 && tenant.starts_with("tnt_") && hex(&tenant[4..]), "{tenant}");
    assert!(!client.key("ignored").post(KEYS, &json!({ "label": "l" })).await.replayed);
    let second = make(&client, json!({ "label": "l", "tenantId": tenant })).await;
    let of = |key: &Value| service.client().with("x-api-key", key["key"].as_str().expect("a key"));
    assert_eq!(of(&body).post("/api/v1/usage", &usage("a", "s", 2)).await.status, 201);
    assert_eq!(of(&second).get("/api/v1/usage/a/s").await.json()["total"], 2);
    // A tenant whose last key is revoked keeps its data, and gets another key by its id.
    for key in [&body, &second] {
        let path = format!("{KEYS}/{}/", &key["key"].as_str().expect("a key")[..12]);
        let gone = client.send("DELETE", &path, None).await;
        assert_eq!((gone.status, gone.text.as_str(), gone.header("content-type").as_str()), (204, "", ""));
        assert_eq!(client.send("DELETE", &path, None).await.status, 404);
    }
    assert_eq!(of(&body).get("/api/v1/usage/a/s").await.json()["total"], 0);
    let third = make(&client, json!({ "label": "l", "tenantId": tenant })).await;
    assert_eq!(of(&third).get("/api/v1/usage/a/s").await.json()["total"], 2);
    let public = make(&client, json!({ "label": "l", "tenantId": "public" })).await;
    assert_eq!(public["tenantId"], "public");
    service.verify().await;
}

#[tokio::test]
async fn checks_come_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let long = "x".repeat(65);
    let label = "label must be a non-empty string up to 64 chars";
    let tenant = "tenantId must be a string of 1-64 chars";
    // 32 characters outside the basic plane are 64 code units.
    assert_eq!(client.post(KEYS, &json!({ "label": "\u{1F511}".repeat(32) })).await.status, 201);
    client.send("PATCH", "/api/v1/config", Some(r#"{"apiKeyStoreMaxKeys":1}"#)).await;
    for (body, status, code, message) in [
        ("[]".to_owned(), 400, "invalid_request", "body must be a JSON object"),
        (r#"{"label":1,"y":1,"x":1}"#.to_owned(), 400, "invalid_request", "unexpected field: y"),
        ("{}".to_owned(), 400, "invalid_request", label),
        (r#"{"label":null,"tenantId":""}"#.to_owned(), 400, "invalid_request", label),
        (r#"{"label":" \t ","tenantId":""}"#.to_owned(), 400, "invalid_request", label),
        (format!(r#"{{"label":"{long}"}}"#), 400, "invalid_request", label),
        (format!(r#"{{"label":"{}"}}"#, "\u{1F511}".repeat(33)), 400, "invalid_request", label),
        (r#"{"label":"l","tenantId":null}"#.to_owned(), 400, "invalid_request", tenant),
        (r#"{"label":"l","tenantId":""}"#.to_owned(), 400, "invalid_request", tenant),
        (format!(r#"{{"label":"l","tenantId":"{long}"}}"#), 400, "invalid_request", tenant),
        (r#"{"label":"l","tenantId":"nobody"}"#.to_owned(), 404, "not_found", "no tenant with id nobody"),
        (r#"{"label":"l","tenantId":"*"}"#.to_owned(), 404, "not_found", "no tenant with id *"),
        (r#"{"label":"l"}"#.to_owned(), 429, "store_capacity_exceeded", "api key store capacity exceeded"),
    ] {
        let answer = client.send("POST", KEYS, Some(&body)).await;
        assert_eq!(answer.error(), (status, code.to_owned(), message.to_owned()), "{body}");
        assert_eq!(answer.header("retry-after"), "", "{body}");
        assert_eq!(answer.header("cache-control"), "private, no-cache");
    }
    let prefix = "prefix must be 1-64 alphanumeric/underscore characters";
    for (path, status, message) in [
        ("apk-1", 400, prefix.to_owned()),
        ("%20", 400, prefix.to_owned()),
        (long.as_str(), 400, prefix.to_owned()),
        ("%C3%A9", 400, prefix.to_owned()),
        ("apk_00000000", 404, "no api key with prefix apk_00000000".to_owned()),
        ("apk_", 404, "no api key with prefix apk_".to_owned()),
    ] {
        let answer = client.send("DELETE", &format!("{KEYS}/{path}"), None).await;
        assert_eq!((answer.status, answer.error().2), (status, message), "{path}");
    }
}

#[tokio::test]
async fn keys_are_listed_in_pages_by_offset_or_cursor() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.get(KEYS).await.text, r#"{"items":[],"total":0,"nextCursor":null}"#);
    let mut all = Vec::new();
    for number in 0..5 {
        // Two of one moment, which stand in the order of their prefixes.
        let made = make(&client, json!({ "label": format!("l{number}") })).await;
        all.push(made["key"].as_str().expect("a key")[..12].to_owned());
    }
    let moment = "UPDATE api_keys SET created_at = (SELECT min(created_at) FROM api_keys) WHERE label IN ('l0', 'l1')";
    sqlx::query(moment).execute(&service.pool).await.expect("SQL");
    all[..2].sort();
    let list = async |query: &str| {
        let list = client.get(&format!("{KEYS}{query}")).await.json();
        let items = list["items"].as_array().expect("items");
        let prefixes: Vec<String> =
            items.iter().map(|item| item["prefix"].as_str().expect("text").to_owned()).collect();
        assert_eq!(list["total"], 5);
        (prefixes, list["nextCursor"].as_str().map(str::to_owned))
    };
    let first = client.get(&format!("{KEYS}?limit=1&offset=4")).await;
    let item = &first.json()["items"][0];
    let (created, tenant) = (&item["createdAt"], item["tenantId"].as_str().expect("an id"));
    let expected = format!(
        r#"{{"items":[{{"prefix":"{}","label":"l4","createdAt":{created},"tenantId":"{tenant}"}}],"total":5,"nextCursor":null}}"#,
        all[4]
    );
    assert_eq!(first.text, expected);
    assert_eq!(list("").await, (all.clone(), None));
    assert_eq!(list("?limit=0").await.0, all[..1]);
    assert_eq!(list("?offset=-1&limit=9999").await, (all.clone(), None));
    assert_eq!(list("?offset=2&limit=3").await, (all[2..].to_vec(), None));
    let (page, cursor) = list("?limit=2").await;
    let cursor = cursor.expect("a cursor");
    assert_eq!(page, all[..2]);
    // The cursor wins over the offset.
    assert_eq!(list(&format!("?limit=2&offset=4&cursor={cursor}")).await.0, all[2..4]);
    for (query, message) in [
        ("cursor=", "cursor is malformed"),
        ("cursor=eA", "cursor is malformed"),
        ("cursor=MTo", "cursor is malformed"),
        ("cursor=MTp4=", "cursor is malformed"),
        ("page=1", "unexpected query parameter: page"),
    ] {
        assert_eq!(client.get(&format!("{KEYS}?{query}")).await.error().2, message, "{query}");
    }
    assert_eq!(list("?cursor=MTp4").await.0, all);
}

#[tokio::test]
async fn pages_of_rows_that_were_made_within_a_millisecond_have_each_of_them_once() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    for rows in [
        "INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at)
         SELECT 'public', 'apk_' || lpad(to_hex(100 - n), 8, '0'), sha256(n::text::bytea), 'label',
                timestamptz '2026-01-01 00:00:00.000001+00' + n * interval '7 microseconds'
         FROM generate_series(1, 40) AS n",
        "INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, created_at, from_position)
         SELECT 'public', 'wh_' || lpad(to_hex(100 - n), 16, '0'), 'https://example.com/', ARRAY['*'],
                sha256(n::text::bytea), timestamptz '2026-01-01 00:00:00.000001+00' + n * interval '7 microseconds', 1
         FROM generate_series(1, 40) AS n",
    ] {
        sqlx::query(rows).execute(&service.pool).await.expect("rows");
    }
    let client = service.client().with("x-api-key", "admin");
    for (path, name) in [("/api/v1/api-keys", "prefix"), ("/api/v1/webhooks", "id")] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        // One page more than there are rows would show that the cursor does not move.
        for _ in 0..21 {
            let page = client.get(&format!("{path}?limit=2{cursor}")).await.json();
            seen.extend(page["items"].as_array().expect("items").iter().map(|item| item[name].to_string()));
            let Some(next) = page["nextCursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let shown = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((shown, seen.len()), (40, 40), "{path}");
    }
}
