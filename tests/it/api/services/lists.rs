//! HTTP contract, sections 9.1 and 11: the list of services, its filters, pages and entity tag, and the outstanding
//! usage of a service.

use serde_json::{Value, json};

use super::{SERVICES, ids, register};
use crate::support::{Service, usage};

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.get(SERVICES).await.text, r#"{"services":[]}"#);
    assert_eq!(client.get(&format!("{SERVICES}?page=")).await.text, r#"{"services":[]}"#);
    assert_eq!(client.get(&format!("{SERVICES}?page=9")).await.text, r#"{"services":[],"page":9,"pageCount":1}"#);
    for (id, price) in [("Alpha.one", 10), ("beta_two", 20), ("alpha-two", 30)] {
        register(&client, id, price).await;
    }
    client.send("POST", "/api/v1/services/beta_two/disable", None).await;
    let all = ["Alpha.one", "beta_two", "alpha-two"].as_slice();
    for (query, expected) in [
        ("", all),
        ("?prefix=alpha", &["alpha-two"]),
        ("?prefix=", all),
        ("?prefix=alpha&prefix=beta", all),
        ("?q=ALPHA", &["Alpha.one", "alpha-two"]),
        ("?q=_", &["beta_two"]),
        ("?q=%25", &[]),
        ("?q=TWO&minPrice=25", &["alpha-two"]),
        ("?disabled=true", &["beta_two"]),
        ("?disabled=false", &["Alpha.one", "alpha-two"]),
        ("?disabled=TRUE", all),
        ("?minPrice=10&maxPrice=2e1", &["Alpha.one", "beta_two"]),
        ("?minPrice=cheap&maxPrice=1.5", all),
        ("?minPrice=&unknown=1", all),
        ("?minPrice=21&disabled=true", &[]),
        ("?limit=2", &["Alpha.one", "beta_two"]),
        ("?limit=2&page=2", &["alpha-two"]),
        ("?limit=0", &["Alpha.one"]),
        ("?limit=abc", all),
    ] {
        assert_eq!(ids(&client, query).await, expected, "{query}");
    }
    let page = client.get(&format!("{SERVICES}?prefix=a&limit=1&page=1")).await.text;
    let item = r#"{"serviceId":"alpha-two","priceStroops":30,"disabled":false}"#;
    assert_eq!(page, format!(r#"{{"services":[{item}],"page":1,"pageCount":1}}"#));
}

#[tokio::test]
async fn pages_match_the_test_vectors() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let items: Vec<Value> = (0..51).map(|n| json!({ "serviceId": format!("s{n}"), "priceStroops": 1 })).collect();
    client.post("/api/v1/services/bulk", &json!({ "items": items })).await;
    let page = client.get(&format!("{SERVICES}?limit=25&page=3")).await.text;
    let item = r#"{"serviceId":"s50","priceStroops":1,"disabled":false}"#;
    assert_eq!(page, format!(r#"{{"services":[{item}],"page":3,"pageCount":3}}"#));
    let past = client.get(&format!("{SERVICES}?limit=25&page=4")).await.text;
    assert_eq!(past, r#"{"services":[],"page":4,"pageCount":3}"#);
    let first = client.get(&format!("{SERVICES}?page=-1&page=2")).await.json();
    assert_eq!((&first["page"], &first["pageCount"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn an_unchanged_list_is_304() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let empty = client.get(SERVICES).await.headers["etag"].clone();
    register(&client, "s", 1).await;
    let first = client.get(SERVICES).await;
    let tag = first.headers["etag"].to_str().expect("a tag").to_owned();
    assert!(tag.starts_with("W/\"") && tag.ends_with('"') && tag != empty, "{tag}");
    assert_eq!(
        client.get(&format!("{SERVICES}?prefix=s")).await.headers["etag"],
        tag.as_str(),
        "the body is the identity"
    );
    let strong = &tag[2..];
    for known in [tag.as_str(), strong, "*", &format!("\"x\", {tag}"), &format!("{strong} , \"y,z\"")] {
        let answer = client.with("if-none-match", known).get(SERVICES).await;
        assert_eq!((answer.status, answer.text.as_str()), (304, ""), "{known}");
        assert_eq!(answer.headers["etag"], tag.as_str());
        assert!(answer.headers.get("content-type").is_none());
        assert_eq!(answer.headers["cache-control"], "private, no-cache");
    }
    for known in ["", "\"x\"", "\"*\"", strong.trim_matches('"')] {
        assert_eq!(client.with("if-none-match", known).get(SERVICES).await.status, 200, "{known}");
    }
    register(&client, "s", 2).await;
    let changed = client.with("if-none-match", &tag).get(SERVICES).await;
    assert!(changed.status == 200 && changed.headers["etag"] != tag.as_str());
    assert!(client.get("/api/v1/services/s").await.headers.get("etag").is_none());
}

#[tokio::test]
async fn outstanding_usage_of_a_service_is_shown_in_sum_and_by_agent() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let at = |tail: &str| format!("/api/v1/services/s/{tail}");
    assert_eq!(client.get(&at("usage")).await.text, r#"{"serviceId":"s","total":0,"agents":0}"#);
    for tail in ["agents", "agents/top"] {
        assert_eq!(client.get(&at(tail)).await.text, r#"{"serviceId":"s","items":[]}"#);
    }
    for (agent, requests) in [("b", 2), ("zero", 1), ("a", 2), ("c", 3), ("B", 2)] {
        client.post("/api/v1/usage", &usage(agent, "s", requests)).await;
    }
    client.post("/api/v1/usage", &usage("elsewhere", "t", 9)).await;
    client.post("/api/v1/settle", &json!({ "agent": "zero", "serviceId": "s" })).await;
    assert_eq!(client.get(&at("usage")).await.text, r#"{"serviceId":"s","total":9,"agents":4}"#);
    let items = |agents: &[(&str, i64)]| {
        let items: Vec<String> =
            agents.iter().map(|(agent, total)| format!(r#"{{"agent":"{agent}","total":{total}}}"#)).collect();
        format!(r#"{{"serviceId":"s","items":[{}]"#, items.join(","))
    };
    for (tail, agents, pages) in [
        ("agents", [("b", 2), ("a", 2), ("c", 3), ("B", 2)].as_slice(), ""),
        // Only a request that pages is limited.
        ("agents?limit=1", &[("b", 2), ("a", 2), ("c", 3), ("B", 2)], ""),
        ("agents?limit=3&page=2", &[("B", 2)], r#","page":2,"pageCount":2"#),
        ("agents?page=5", &[], r#","page":5,"pageCount":1"#),
        ("agents/top", &[("c", 3), ("B", 2), ("a", 2), ("b", 2)], ""),
        ("agents/top?limit=2", &[("c", 3), ("B", 2)], ""),
        ("agents/top?limit=3&page=2", &[("b", 2)], r#","page":2,"pageCount":2"#),
        ("agents/top?limit=1&page=9", &[], r#","page":9,"pageCount":4"#),
    ] {
        assert_eq!(client.get(&at(tail)).await.text, format!("{}{pages}}}", items(agents)), "{tail}");
    }
}
