//! HTTP contract, section 10.4: GET settlements and GET settlements/:id.

use serde_json::{Value, json};

use crate::support::{Client, Service, usage};

const LEDGER: &str = "/api/v1/settlements";

async fn record(client: &Client, agent: &str, service: &str) {
    assert_eq!(client.post("/api/v1/usage", &usage(agent, service, 2)).await.status, 201);
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("items");
    let text = |item: &Value, name: &str| item[name].as_str().expect("text").to_owned();
    items.iter().map(|item| text(item, "agent") + "/" + &text(item, "serviceId")).collect()
}

#[tokio::test]
async fn an_item_has_its_members_in_order_and_the_rows_of_one_request_share_its_marks() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.get(LEDGER).await.text, r#"{"items":[],"nextCursor":null}"#);
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 3 })).await;
    for service_id in ["s", "t"] {
        record(&client, "a", service_id).await;
    }
    client.key("both").with("x-request-id", "r-1").post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    record(&client, "b", "s").await;
    client.with("x-request-id", "r-2").post("/api/v1/settle", &json!({ "agent": "b", "serviceId": "s" })).await;
    let list = client.get(LEDGER).await;
    let items = list.json()["items"].as_array().expect("items").clone();
    assert_eq!(names(&list.json()), ["b/s", "a/t", "a/s"]);
    let shown = |item: &Value| {
        let (id, at) = (item["id"].as_str().expect("an id"), item["settledAt"].as_i64().expect("a moment"));
        let digits = id.strip_prefix("stl_").expect("its kind");
        assert!(digits.len() == 32 && digits.bytes().all(|digit| b"0123456789abcdef".contains(&digit)), "{id}");
        (id.to_owned(), at)
    };
    let expected = |item: &Value, middle: &str, last: &str| {
        let (id, at) = shown(item);
        format!(r#"{{"id":"{id}",{middle},"settledAt":{at},{last}}}"#)
    };
    let texts = [
        expected(
            &items[0],
            r#""agent":"b","serviceId":"s","requests":2,"priceStroops":3,"billedStroops":6"#,
            r#""idempotencyKey":null,"requestId":"r-2""#,
        ),
        expected(
            &items[1],
            r#""agent":"a","serviceId":"t","requests":2,"priceStroops":0,"billedStroops":0"#,
            r#""idempotencyKey":"both","requestId":"r-1""#,
        ),
        expected(
            &items[2],
            r#""agent":"a","serviceId":"s","requests":2,"priceStroops":3,"billedStroops":6"#,
            r#""idempotencyKey":"both","requestId":"r-1""#,
        ),
    ];
    assert_eq!(list.text, format!(r#"{{"items":[{}],"nextCursor":null}}"#, texts.join(",")));
    for (item, text) in items.iter().zip(&texts) {
        assert_eq!(client.get(&format!("{LEDGER}/{}", shown(item).0)).await.text, *text);
    }
    // A later price and a deleted service change no bill.
    client.send("PATCH", "/api/v1/services/s/price", Some(r#"{"priceStroops":9}"#)).await;
    client.send("DELETE", "/api/v1/services/s", None).await;
    assert_eq!(client.get(LEDGER).await.text, list.text);
}

#[tokio::test]
async fn filters_combine_and_bad_ones_are_named() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let mut moments = Vec::new();
    for (agent, service_id) in [("a", "s"), ("a", "t"), ("b", "s"), ("a", "s")] {
        service.clock.advance_ms(1000);
        record(&client, agent, service_id).await;
        client.post("/api/v1/settle", &json!({ "agent": agent, "serviceId": service_id })).await;
        moments.push(client.get(LEDGER).await.json()["items"][0]["settledAt"].as_i64().expect("a moment"));
    }
    let list = async |query: &str| names(&client.get(&format!("{LEDGER}{query}")).await.json());
    assert_eq!(list("").await, ["a/s", "b/s", "a/t", "a/s"]);
    assert_eq!(list("?agent=a").await, ["a/s", "a/t", "a/s"]);
    assert_eq!(list("?serviceId=s").await, ["a/s", "b/s", "a/s"]);
    assert_eq!(list("?agent=a&serviceId=s").await, ["a/s", "a/s"]);
    assert_eq!(list(&format!("?since={}", moments[2])).await, ["a/s", "b/s"]);
    assert_eq!(list(&format!("?since={}", moments[2] + 1)).await, ["a/s"]);
    assert_eq!(list(&format!("?agent=a&serviceId=t&since={}", moments[1])).await, ["a/t"]);
    assert_eq!(list("?agent=nobody").await, [""; 0]);
    // Empty is no filter, repeated counts as absent, and what is no number neither.
    for query in ["?agent=&serviceId=", "?agent=b&agent=b", "?since=soon", "?since=-5", "?limit=x"] {
        assert_eq!(list(query).await.len(), 4, "{query}");
    }
    for (query, message) in [
        ("agent=a%20b", "agent must be a safe identifier"),
        ("serviceId=a%2Fb", "serviceId must be 1-128 chars using only letters, numbers, dot, underscore, or hyphen"),
        ("agent=%20&serviceId=%20", "agent must be a safe identifier"),
        ("page=1", "unexpected query parameter: page"),
        ("cursor=", "cursor is malformed"),
        ("cursor=eA", "cursor is malformed"),
    ] {
        let refused = client.get(&format!("{LEDGER}?{query}")).await.error();
        assert_eq!((refused.0, refused.2.as_str()), (400, message), "{query}");
    }
    let missing = client.get(&format!("{LEDGER}/stl_x")).await.error();
    assert_eq!(missing, (404, "not_found".to_owned(), "settlement stl_x not found".to_owned()));
    assert_eq!(client.get(&format!("{LEDGER}/stl_x?x=1")).await.error().2, "unexpected query parameter: x");
}

#[tokio::test]
async fn pages_join_without_a_gap_and_end_with_null_under_a_filter_too() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for number in 0..6 {
        record(&client, "a", &format!("s{number}")).await;
    }
    // Six of one moment.
    client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    record(&client, "b", "s0").await;
    client.post("/api/v1/settle", &json!({ "agent": "b", "serviceId": "s0" })).await;
    for (limit, filter, all) in
        [(2_usize, "", 7_usize), (7, "", 7), (3, "&agent=a", 6), (1, "&serviceId=s0", 2), (4, "&agent=a&since=1", 6)]
    {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = client.get(&format!("{LEDGER}?limit={limit}{filter}{cursor}")).await.json();
            seen.extend(names(&page));
            pages += 1;
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!((seen.len(), distinct.len(), pages), (all, all, all.div_ceil(limit)), "{filter}");
    }
}

/// A position that no calendar has is still a position.
#[tokio::test]
async fn cursors_of_any_moment_are_answered_on_every_list() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let service = Service::start(&[]).await;
    let client = service.client();
    for moment in [i64::MIN, -300_000_000_000_000, -62_135_596_800_001, 253_402_300_800_000, i64::MAX] {
        let cursor = URL_SAFE_NO_PAD.encode(format!("{moment}:1"));
        for path in [LEDGER, "/api/v1/api-keys", "/api/v1/webhooks"] {
            let status = client.get(&format!("{path}?cursor={cursor}")).await.status;
            // No cursor of ours is from before 1970, so that one may be called malformed.
            assert!(status == 200 || (moment < 0 && status == 400), "{path} from {moment}: {status}");
        }
        assert_eq!(client.get(&format!("/api/v1/events?cursor={cursor}")).await.status, 400);
    }
}
