//! HTTP contract, section 14: the event log and its summary, with their exact bodies.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::{Client, Service, usage};

const EVENTS: &str = "/api/v1/events";

async fn cap(service: &Service, cap: i64) {
    sqlx::query("UPDATE runtime_config SET event_log_cap = $1").bind(cap).execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
}

async fn record(client: &Client, numbers: std::ops::RangeInclusive<i64>) {
    for number in numbers {
        client.post("/api/v1/usage", &usage("a", "s", number)).await;
    }
}

async fn page(client: &Client, query: &str) -> Value {
    let answer = client.get(&format!("{EVENTS}{query}")).await;
    assert_eq!(answer.status, 200, "{query} {}", answer.text);
    answer.json()
}

/// The requests of the usage events of a page.
fn requests(page: &Value) -> Vec<i64> {
    page["items"].as_array().expect("items").iter().filter_map(|item| item["payload"]["requests"].as_i64()).collect()
}

fn next(page: &Value) -> &str {
    page["nextCursor"].as_str().expect("a cursor")
}

#[tokio::test]
async fn every_event_has_its_members_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.get(EVENTS).await.text, r#"{"total":0,"items":[],"nextCursor":null}"#);
    assert_eq!(client.get("/api/v1/events/summary").await.text, r#"{"counts":{},"total":0}"#);
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 9_007_199_254_i64 })).await;
    client.post("/api/v1/usage", &usage("a", "s", 1_000_000)).await;
    client.post("/api/v1/usage/bulk", &json!({ "items": [usage("a", "s", 1_000_000)] })).await;
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    for path in ["disable", "enable"] {
        client.send("POST", &format!("/api/v1/services/s/{path}"), None).await;
    }
    client.send("DELETE", "/api/v1/services/s", None).await;
    let answer = client.get(EVENTS).await;
    let page = answer.json();
    assert_eq!((&page["total"], &page["nextCursor"]), (&json!(8), &json!(null)));
    let expected = [
        ("usage.recorded", r#"{"agent":"a","serviceId":"s","requests":1000000,"total":1000000}"#),
        ("usage.recorded", r#"{"agent":"a","serviceId":"s","requests":1000000,"total":2000000,"bulk":true}"#),
        ("usage.settled", r#"{"agent":"a","serviceId":"s","requests":2000000,"billedStroops":"18014398508000000"}"#),
        ("usage.recorded", r#"{"agent":"a","serviceId":"s","requests":1,"total":1}"#),
        ("usage.settled", r#"{"agent":"a","serviceId":"s","requests":1,"billedStroops":9007199254,"bulk":true}"#),
        ("service.disabled", r#"{"serviceId":"s","tenantId":"public"}"#),
        ("service.enabled", r#"{"serviceId":"s","tenantId":"public"}"#),
        ("service.deleted", r#"{"serviceId":"s"}"#),
    ];
    let items = page["items"].as_array().expect("items");
    let shown: Vec<String> = items
        .iter()
        .zip(expected)
        .map(|(item, (type_name, payload))| {
            let (id, ts) = (item["id"].as_str().expect("an id"), &item["ts"]);
            uuid::Uuid::parse_str(id).expect("a UUID");
            assert!((ts.as_i64().expect("ms") - service.clock.now().as_ms()).abs() < 60_000);
            format!(r#"{{"id":"{id}","ts":{ts},"type":"{type_name}","payload":{payload}}}"#)
        })
        .collect();
    assert_eq!(answer.text, format!(r#"{{"total":8,"items":[{}],"nextCursor":null}}"#, shown.join(",")));
    let summary = client.get("/api/v1/events/summary").await.json();
    let counts = json!({ "service.deleted": 1, "service.disabled": 1, "service.enabled": 1,
                         "usage.recorded": 3, "usage.settled": 2 });
    assert_eq!(summary, json!({ "counts": counts, "total": 8 }));
}

#[tokio::test]
async fn pages_go_back_in_time_the_oldest_first_in_each() {
    let service = Service::start(&[]).await;
    let client = service.client();
    record(&client, 1..=5).await;
    let first = page(&client, "?limit=2").await;
    assert_eq!((requests(&first), &first["total"]), (vec![4, 5], &json!(5)));
    // The cursor is the oldest event of the page.
    let oldest = &first["items"][0];
    let text = format!("{}:{}", oldest["ts"], oldest["id"].as_str().expect("an id"));
    assert_eq!(next(&first), URL_SAFE_NO_PAD.encode(text));
    let second = page(&client, &format!("?limit=2&cursor={}", next(&first))).await;
    assert_eq!((requests(&second), &second["total"]), (vec![2, 3], &json!(5)));
    let third = page(&client, &format!("?limit=2&cursor={}", next(&second))).await;
    assert_eq!((requests(&third), &third["nextCursor"]), (vec![1], &json!(null)));
    // At an exact boundary there is no next page, and behind the oldest event there is nothing.
    assert_eq!(page(&client, "?limit=5").await["nextCursor"], json!(null));
    let exact = page(&client, &format!("?limit=1&cursor={}", next(&second))).await;
    assert_eq!((requests(&exact), &exact["nextCursor"]), (vec![1], &json!(null)));
    let last = &third["items"][0];
    let cursor = URL_SAFE_NO_PAD.encode(format!("{}:{}", last["ts"], last["id"].as_str().expect("an id")));
    let behind = page(&client, &format!("?cursor={cursor}")).await;
    assert_eq!(behind, json!({ "total": 5, "items": [], "nextCursor": null }));
    for (query, expected) in [("?limit=0", vec![5]), ("?limit=-1", vec![5]), ("?limit=2.9", vec![4, 5])] {
        assert_eq!(requests(&page(&client, query).await), expected, "{query}");
    }
}

/// The newest events up to the default limit are read in another way than longer pages.
#[tokio::test]
async fn pages_around_the_default_limit_are_whole() {
    let service = Service::start(&[]).await;
    let client = service.client();
    record(&client, 1..=101).await;
    for (query, numbers) in [("", 2..=101), ("?limit=99", 3..=101), ("?limit=100", 2..=101)] {
        let newest = page(&client, query).await;
        assert_eq!(requests(&newest), numbers.collect::<Vec<_>>(), "{query}");
        let rest = page(&client, &format!("?cursor={}", next(&newest))).await;
        assert_eq!(requests(&rest).last(), Some(&(requests(&newest)[0] - 1)), "{query}");
    }
    for query in ["?limit=101", "?limit=102"] {
        let all = page(&client, query).await;
        assert_eq!((requests(&all), &all["nextCursor"]), ((1..=101).collect(), &Value::Null), "{query}");
    }
}

#[tokio::test]
async fn since_and_type_filter_items_total_and_cursor() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    record(&client, 1..=2).await;
    client.send("POST", "/api/v1/services/s/enable", None).await;
    service.clock.advance_ms(60_000);
    record(&client, 3..=4).await;
    let all = page(&client, "").await;
    let ts = |place: usize| all["items"][place]["ts"].as_i64().expect("ms");
    let since = ts(3);
    for (query, total, expected) in [
        ("?type=usage.recorded".to_owned(), 4, vec![1, 2, 3, 4]),
        ("?type=service.enabled".to_owned(), 1, vec![]),
        ("?type=unknown".to_owned(), 0, vec![]),
        ("?type=".to_owned(), 0, vec![]),
        ("?type=unknown&type=usage.recorded".to_owned(), 5, vec![1, 2, 3, 4]),
        (format!("?since={since}"), 2, vec![3, 4]),
        (format!("?since={}", since + 3_600_000), 0, vec![]),
        ("?since=1e999".to_owned(), 5, vec![1, 2, 3, 4]),
        ("?since=9007199254740993".to_owned(), 0, vec![]),
        (format!("?since={since}&type=service.enabled"), 0, vec![]),
        ("?type=usage.recorded&limit=1".to_owned(), 4, vec![4]),
    ] {
        let page = page(&client, &query).await;
        assert_eq!((page["total"].as_i64(), requests(&page)), (Some(total), expected), "{query}");
    }
    let filtered = page(&client, "?type=usage.recorded&limit=3").await;
    let rest = page(&client, &format!("?type=usage.recorded&limit=3&cursor={}", next(&filtered))).await;
    assert_eq!((requests(&rest), &rest["total"], &rest["nextCursor"]), (vec![1], &json!(4), &json!(null)));
    // A cursor is an event of the filtered log.
    let expired = (400, "invalid_request".to_owned(), "cursor is invalid or expired".to_owned());
    for filter in ["type=service.enabled".to_owned(), format!("since={since}")] {
        let path = format!("{EVENTS}?{filter}&cursor={}", next(&filtered));
        assert_eq!(client.get(&path).await.error(), expired, "{filter}");
    }
}

#[tokio::test]
async fn cursors_and_parameters_are_checked_by_their_form_and_their_position() {
    let service = Service::start(&[]).await;
    let client = service.client();
    record(&client, 1..=2).await;
    let cursor = next(&page(&client, "?limit=1").await).to_owned();
    let tenant = service.tenant().await;
    assert_eq!(tenant.get(EVENTS).await.json()["total"], 0);
    assert_eq!(tenant.get("/api/v1/events/summary").await.json()["total"], 0);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let (malformed, expired) = ("cursor is malformed", "cursor is invalid or expired");
    for (client, value, message) in [
        (&client, String::new(), malformed),
        (&client, "!!".to_owned(), malformed),
        (&client, format!("{cursor}="), malformed),
        (&client, encode("x:1"), malformed),
        (&client, encode("1:"), malformed),
        (&client, encode("1"), malformed),
        (&client, encode("1.5:x"), malformed),
        (&client, encode("1:x"), expired),
        (&client, encode("1:00000000-0000-8000-8000-000000000001"), expired),
        (&tenant, cursor.clone(), expired),
    ] {
        let answer = client.get(&format!("{EVENTS}?cursor={value}")).await.error();
        assert_eq!(answer, (400, "invalid_request".to_owned(), message.to_owned()), "{value}");
    }
    for (path, name) in [("?x=1&limit=1", "x"), ("/summary?since=1", "since"), ("?limit=1&page=2", "page")] {
        let answer = client.get(&format!("{EVENTS}{path}")).await.error();
        assert_eq!(answer.2, format!("unexpected query parameter: {name}"));
    }
    assert_eq!(client.get(&format!("{EVENTS}?type=%00")).await.error().2, "text must not contain U+0000");
}

#[tokio::test]
async fn only_the_newest_events_up_to_the_cap_are_visible() {
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000")]).await;
    let client = service.client();
    record(&client, 1..=6).await;
    let hidden = next(&page(&client, "?limit=5").await).to_owned();
    let shown = next(&page(&client, "?limit=3").await).to_owned();
    cap(&service, 4).await;
    assert_eq!(service.number("SELECT count(*) FROM events").await, 6);
    let whole = page(&client, "").await;
    assert_eq!((requests(&whole), &whole["total"], &whole["nextCursor"]), (vec![3, 4, 5, 6], &json!(4), &json!(null)));
    // The longest page is the cap.
    assert_eq!(requests(&page(&client, "?limit=100").await), [3, 4, 5, 6]);
    let filtered = page(&client, "?type=usage.recorded").await;
    assert_eq!((requests(&filtered), &filtered["total"]), (vec![3, 4, 5, 6], &json!(4)));
    let rest = page(&client, &format!("?cursor={shown}")).await;
    assert_eq!((requests(&rest), &rest["total"], &rest["nextCursor"]), (vec![3], &json!(4), &json!(null)));
    let gone = client.get(&format!("{EVENTS}?cursor={hidden}")).await.error();
    assert_eq!(gone.2, "cursor is invalid or expired");
    let summary = client.get("/api/v1/events/summary").await.text;
    assert_eq!(summary, r#"{"counts":{"usage.recorded":4},"total":4}"#);
    cap(&service, 1).await;
    assert_eq!(requests(&page(&client, "").await), [6]);
    cap(&service, 10_000).await;
    assert_eq!(page(&client, "").await["total"], 6);
}

#[tokio::test]
async fn an_unchanged_page_is_304_and_equal_bodies_under_other_filters_are_not() {
    let service = Service::start(&[]).await;
    let client = service.client();
    record(&client, 1..=2).await;
    let tag = |query: &'static str| {
        let client = client.clone();
        async move { client.get(&format!("{EVENTS}{query}")).await.headers["etag"].to_str().expect("a tag").to_owned() }
    };
    let plain = tag("").await;
    assert!(plain.starts_with("W/\""));
    assert_eq!(tag("?limit=100&since=0").await, plain, "the effective values count");
    for query in ["?limit=99", "?since=1", "?type=usage.recorded"] {
        assert_eq!(page(&client, query).await, page(&client, "").await);
        assert_ne!(tag(query).await, plain, "{query}");
    }
    for known in [plain.as_str(), "*", &format!("\"x\",{plain}")] {
        let answer = client.with("if-none-match", known).get(EVENTS).await;
        assert_eq!((answer.status, answer.text.as_str()), (304, ""), "{known}");
        assert_eq!(answer.headers["etag"], plain.as_str());
    }
    record(&client, 3..=3).await;
    assert_eq!(client.with("if-none-match", &plain).get(EVENTS).await.status, 200);
    assert!(client.get("/api/v1/events/summary").await.headers.get("etag").is_none());
}
