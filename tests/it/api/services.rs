//! HTTP contract, section 11: services, row by row, with their exact bodies.

use serde_json::{Value, json};

use crate::support::{Answer, Client, Service, new_database, usage};

const SERVICES: &str = "/api/v1/services";
const SERVICE_ID: &str = "serviceId must be 1-128 chars using only letters, numbers, dot, underscore, or hyphen";
const PRICE: &str = "priceStroops must be a non-negative integer within supported bounds";
const DESCRIPTION: &str = "description must be a string up to 256 chars";
const OWNER: &str = "owner must be a non-empty string up to 256 chars";

async fn register(client: &Client, id: &str, price: i64) -> Answer {
    client.post(SERVICES, &json!({ "serviceId": id, "priceStroops": price })).await
}

async fn ids(client: &Client, query: &str) -> Vec<String> {
    let list = client.get(&format!("{SERVICES}{query}")).await.json();
    let ids = list["services"].as_array().expect("services").iter();
    ids.map(|service| service["serviceId"].as_str().expect("an id").to_owned()).collect()
}

fn invalid(message: &str) -> (u16, String, String) {
    (400, "invalid_request".to_owned(), message.to_owned())
}

fn missing(id: &str) -> (u16, String, String) {
    (404, "not_found".to_owned(), format!("service {id} is not registered"))
}

/// Sets one column of the limits, as a change by the operator would.
async fn limit(service: &Service, column: &'static str, value: i64) {
    let sql = format!("UPDATE runtime_config SET {column} = $1");
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(value).execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
}

#[tokio::test]
async fn a_service_is_registered_updated_shown_changed_and_deleted() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let body = r#"{"serviceId":"s","priceStroops":5,"description":"","owner":"o"}"#;
    let made = client.send("POST", SERVICES, Some(body)).await;
    assert_eq!((made.status, made.text.as_str()), (201, body));
    // An update keeps metadata and flag, and shows only what was sent.
    client.send("POST", "/api/v1/services/s/disable", None).await;
    let updated = register(&client, "s", 6).await;
    assert_eq!((updated.status, updated.text.as_str()), (200, r#"{"serviceId":"s","priceStroops":6}"#));
    let shown = client.get("/api/v1/services/s").await;
    let expected = r#"{"serviceId":"s","priceStroops":6,"disabled":true,"description":"","owner":"o"}"#;
    assert_eq!((shown.status, shown.text.as_str()), (200, expected));
    for (method, path, body, answer) in [
        ("GET", "metadata", None, r#"{"serviceId":"s","description":"","owner":"o"}"#),
        (
            "PUT",
            "metadata",
            Some(r#"{"owner":"p","x":1,"description":"d"}"#),
            r#"{"serviceId":"s","description":"d","owner":"p"}"#,
        ),
        ("GET", "metadata/", None, r#"{"serviceId":"s","description":"d","owner":"p"}"#),
        ("PATCH", "price", Some(r#"{"priceStroops":7.0,"x":1}"#), r#"{"serviceId":"s","priceStroops":7}"#),
        ("PATCH", "disabled", Some(r#"{"disabled":false}"#), r#"{"serviceId":"s","disabled":false}"#),
        ("POST", "disable", None, r#"{"serviceId":"s","disabled":true}"#),
        ("POST", "enable", None, r#"{"serviceId":"s","disabled":false}"#),
        ("POST", "enable", None, r#"{"serviceId":"s","disabled":false}"#),
    ] {
        let given = client.send(method, &format!("/api/v1/services/s/{path}"), body).await;
        assert_eq!((given.status, given.text.as_str()), (200, answer), "{method} {path}");
    }
    let deleted = client.send("DELETE", "/api/v1/services/s", None).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    assert!(deleted.headers.get("content-type").is_none());
    assert_eq!(client.get("/api/v1/services/s").await.error(), missing("s"));
    // Metadata and flag went with it.
    register(&client, "s", 1).await;
    let anew = client.get("/api/v1/services/s").await;
    assert_eq!(anew.text, r#"{"serviceId":"s","priceStroops":1,"disabled":false}"#);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 5);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'service.disabled'").await, 2);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'service.enabled'").await, 2);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'service.deleted'").await, 1);
    service.verify().await;
}

#[tokio::test]
async fn an_id_that_breaks_the_rule_is_refused_before_anything_else() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (method, tail) in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/metadata"),
        ("PUT", "/metadata"),
        ("PATCH", "/price"),
        ("PATCH", "/disabled"),
        ("POST", "/disable"),
        ("POST", "/enable"),
        ("GET", "/usage"),
        ("GET", "/agents"),
        ("GET", "/agents/top"),
    ] {
        for id in ["a%20b", "a%2Fb", "%C3%A9", &"s".repeat(129)] {
            let body = (method != "GET").then_some(r#"{"unknown":1}"#);
            let answer = client.send(method, &format!("/api/v1/services/{id}{tail}"), body).await;
            assert_eq!(answer.error(), invalid(SERVICE_ID), "{method} {id}{tail}");
        }
    }
}

#[tokio::test]
async fn checks_of_a_change_come_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    register(&client, "s", 1).await;
    let long = format!(r#"{{"description":"{}","owner":"o"}}"#, "d".repeat(257));
    let long_owner = format!(r#"{{"description":"d","owner":"{}"}}"#, "o".repeat(257));
    for (method, path, body, answer) in [
        // First whether it exists, then what is wrong with the body.
        ("PUT", "none/metadata", "{}", missing("none")),
        ("PATCH", "none/price", "{}", missing("none")),
        ("POST", "none/disable", "{}", missing("none")),
        ("POST", "none/enable", "{}", missing("none")),
        ("DELETE", "none", "{}", missing("none")),
        // But a strict body comes first.
        ("PATCH", "none/disabled", r#"{"disabled":true}"#, missing("none")),
        ("PATCH", "none/disabled", r#"{"disabled":1}"#, invalid("disabled must be a boolean")),
        ("PATCH", "s/disabled", r#"{"disabled":1,"x":1,"y":1}"#, invalid("unexpected field: x")),
        ("PATCH", "s/disabled", "{}", invalid("disabled must be a boolean")),
        ("PATCH", "s/disabled", r#"{"disabled":null}"#, invalid("disabled must be a boolean")),
        ("PATCH", "s/disabled", "[]", invalid("body must be a JSON object")),
        ("PATCH", "s/price", "[]", invalid(PRICE)),
        ("PATCH", "s/price", r#"{"priceStroops":-1}"#, invalid(PRICE)),
        ("PATCH", "s/price", r#"{"priceStroops":1.5}"#, invalid(PRICE)),
        ("PATCH", "s/price", r#"{"priceStroops":"1"}"#, invalid(PRICE)),
        ("PATCH", "s/price", r#"{"priceStroops":9007199255}"#, invalid(PRICE)),
        ("PUT", "s/metadata", r#"{"owner":""}"#, invalid(DESCRIPTION)),
        ("PUT", "s/metadata", &long, invalid(DESCRIPTION)),
        ("PUT", "s/metadata", r#"{"description":"d"}"#, invalid(OWNER)),
        ("PUT", "s/metadata", r#"{"description":"d","owner":""}"#, invalid(OWNER)),
        ("PUT", "s/metadata", &long_owner, invalid(OWNER)),
    ] {
        let given = client.send(method, &format!("/api/v1/services/{path}"), Some(body)).await;
        assert_eq!(given.error(), answer, "{method} {path} {body}");
    }
    // 256 UTF-16 units, of which each of these takes two.
    let fits = json!({ "description": "😀".repeat(128), "owner": "o" });
    assert_eq!(client.send("PUT", "/api/v1/services/s/metadata", Some(&fits.to_string())).await.status, 200);
    let over = json!({ "description": "😀".repeat(129), "owner": "o" });
    let refused = client.send("PUT", "/api/v1/services/s/metadata", Some(&over.to_string())).await;
    assert_eq!(refused.error(), invalid(DESCRIPTION));
    register(&client, "plain", 1).await;
    for id in ["plain", "none"] {
        let answer = client.get(&format!("/api/v1/services/{id}/metadata")).await.error();
        assert_eq!(answer, (404, "not_found".to_owned(), format!("no metadata for service {id}")));
    }
}

#[tokio::test]
async fn checks_of_a_registration_come_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (body, message) in [
        ("[]", "body must be a JSON object"),
        (r#"{"serviceId":"a b","x":1}"#, "unexpected field: x"),
        (r#"{"priceStroops":-1}"#, SERVICE_ID),
        (r#"{"serviceId":"s","description":1}"#, PRICE),
        (r#"{"serviceId":"s","priceStroops":1,"owner":"o"}"#, DESCRIPTION),
        (r#"{"serviceId":"s","priceStroops":1,"description":"d"}"#, OWNER),
        (r#"{"serviceId":"s","priceStroops":1,"description":null,"owner":"o"}"#, DESCRIPTION),
    ] {
        assert_eq!(client.send("POST", SERVICES, Some(body)).await.error(), invalid(message), "{body}");
    }
    limit(&service, "services_store_max_keys", 1).await;
    assert_eq!(register(&client, "one", 1).await.status, 201);
    let full = (429, "store_capacity_exceeded".to_owned(), "service store capacity exceeded".to_owned());
    assert_eq!(register(&client, "two", 1).await.error(), full);
    assert_eq!(register(&client, "one", 2).await.status, 200);
    client.send("DELETE", "/api/v1/services/one", None).await;
    assert_eq!(register(&client, "two", 1).await.status, 201);
    service.verify().await;
}

#[tokio::test]
async fn a_bulk_registration_answers_each_item_in_its_place() {
    let service = Service::start(&[]).await;
    let client = service.client();
    limit(&service, "services_store_max_keys", 3).await;
    let metadata = json!({ "serviceId": "old", "priceStroops": 1, "description": "d", "owner": "o" });
    client.post(SERVICES, &metadata).await;
    let body = json!({ "x": 1, "items": [
        { "serviceId": "z", "priceStroops": 1, "owner": "ignored" }, null, { "serviceId": "z", "priceStroops": -1 },
        { "serviceId": "old", "priceStroops": 2 }, { "serviceId": "z", "priceStroops": 3 },
        { "serviceId": "a", "priceStroops": 4 }, { "serviceId": "more", "priceStroops": 5 },
        { "serviceId": "more", "priceStroops": 5 }, { "serviceId": "a b", "priceStroops": 1 }, 7,
        { "serviceId": "old", "priceStroops": 9 }
    ] });
    let answer = client.key("bulk").post("/api/v1/services/bulk", &body).await;
    let expected = concat!(
        r#"{"results":[{"index":0,"ok":true,"serviceId":"z","priceStroops":1,"created":true},"#,
        r#"{"index":1,"ok":false,"error":"invalid_item"},{"index":2,"ok":false,"error":"invalid_item"},"#,
        r#"{"index":3,"ok":true,"serviceId":"old","priceStroops":2,"created":false},"#,
        r#"{"index":4,"ok":false,"serviceId":"z","error":"duplicate_in_batch"},"#,
        r#"{"index":5,"ok":true,"serviceId":"a","priceStroops":4,"created":true},"#,
        r#"{"index":6,"ok":false,"serviceId":"more","error":"store_capacity_exceeded"},"#,
        r#"{"index":7,"ok":false,"serviceId":"more","error":"duplicate_in_batch"},"#,
        r#"{"index":8,"ok":false,"error":"invalid_item"},{"index":9,"ok":false,"error":"invalid_item"},"#,
        r#"{"index":10,"ok":false,"serviceId":"old","error":"duplicate_in_batch"}]}"#
    );
    assert_eq!((answer.status, answer.text.as_str()), (201, expected));
    let again = client.key("bulk").post("/api/v1/services/bulk", &body).await;
    assert!(again.same(&answer) && again.replayed);
    // New ones are listed in the order of the request, and metadata stays as it was.
    assert_eq!(ids(&client, "").await, ["old", "z", "a"]);
    let old = client.get("/api/v1/services/old").await.text;
    assert_eq!(old, r#"{"serviceId":"old","priceStroops":2,"disabled":false,"description":"d","owner":"o"}"#);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 0);
    let too_many = json!({ "items": vec![Value::Null; 101] }).to_string();
    for body in ["{}", "[]", r#"{"items":[]}"#, r#"{"items":{}}"#, &too_many] {
        let answer = client.send("POST", "/api/v1/services/bulk", Some(body)).await;
        assert_eq!(answer.error(), invalid("items must be 1-100 entries"));
    }
    limit(&service, "bulk_max_items", 1000).await;
    let thousand: Vec<Value> = (0..1000).map(|n| json!({ "serviceId": format!("n{n}"), "priceStroops": n })).collect();
    let full = client.post("/api/v1/services/bulk", &json!({ "items": thousand })).await;
    assert_eq!(full.text.matches("store_capacity_exceeded").count(), 1000);
    limit(&service, "services_store_max_keys", 10_000).await;
    let made = client.post("/api/v1/services/bulk", &json!({ "items": thousand })).await;
    assert_eq!(made.text.matches("\"created\":true").count(), 1000);
    assert_eq!(client.post("/api/v1/services/bulk", &json!({ "items": thousand })).await.status, 201);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cap_holds_when_two_processes_register_at_once() {
    let database = new_database().await;
    let services =
        [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[("COMMIT_LANES", "4")]).await];
    for service in &services {
        limit(service, "services_store_max_keys", 30).await;
    }
    let requests = (0..20).map(|number: usize| {
        let client = services[number % 2].client();
        tokio::spawn(async move {
            let item = |n: usize| json!({ "serviceId": format!("s{}", (number * 3 + n) % 40), "priceStroops": number });
            let items: Vec<Value> = (0..8).map(item).collect();
            let made = client.post("/api/v1/services/bulk", &json!({ "items": items })).await;
            let deleted = client.send("DELETE", &format!("/api/v1/services/s{number}"), None).await;
            let single = register(&client, &format!("single{number}"), 1).await;
            assert!(made.status == 201 && [204, 404].contains(&deleted.status), "{made:?} {deleted:?}");
            assert!([201, 429].contains(&single.status), "{single:?}");
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.expect("a request");
    }
    assert!(service_count(&services[0]).await <= 30);
    // What is free can still be taken, and no more.
    for number in 0..30 {
        register(&services[1].client(), &format!("last{number}"), 1).await;
    }
    assert_eq!(service_count(&services[0]).await, 30);
    services[0].verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bulk_registrations_that_meet_share_the_room_there_is() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    for service in &services {
        limit(service, "services_store_max_keys", 30).await;
    }
    // Readers pass and writers wait, so that both have counted before either can insert, unless one waits for the other.
    let mut gate = services[0].pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE services IN SHARE MODE").execute(&mut *gate).await.expect("a lock");
    let requests = (0..2).map(|number: usize| {
        let client = services[number].client();
        let item = |n: usize| json!({ "serviceId": format!("s{number}-{n}"), "priceStroops": 1 });
        let items: Vec<Value> = (0..20).map(item).collect();
        tokio::spawn(async move { client.post("/api/v1/services/bulk", &json!({ "items": items })).await })
    });
    let requests: Vec<_> = requests.collect();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while services[0].number(waiting).await < 2 {}
    gate.rollback().await.expect("a rollback");
    let mut created = 0;
    for request in requests {
        let answer = request.await.expect("a request");
        assert_eq!(answer.status, 201, "{answer:?}");
        created += answer.text.matches(r#""created":true"#).count();
    }
    assert_eq!(created, 30);
    assert_eq!(service_count(&services[0]).await, 30);
    services[0].verify().await;
}

async fn service_count(service: &Service) -> i64 {
    service.number("SELECT count(*) FROM services").await
}

#[tokio::test]
async fn a_deleted_service_leaves_its_pairs_and_comes_back_at_the_end_of_the_list() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for id in ["first", "second"] {
        register(&client, id, 5).await;
    }
    client.post("/api/v1/usage", &usage("a", "first", 3)).await;
    client.send("DELETE", "/api/v1/services/first", None).await;
    assert_eq!(client.get("/api/v1/usage/a/first").await.json()["total"], 3);
    register(&client, "first", 5).await;
    register(&client, "second", 6).await;
    assert_eq!(ids(&client, "").await, ["second", "first"]);
    assert_eq!(client.get("/api/v1/billing/a/first").await.json()["billedStroops"], 15);
    service.verify().await;
}

#[tokio::test]
async fn fixed_names_are_no_reserved_ids() {
    let service = Service::start(&[]).await;
    let client = service.client();
    register(&client, "bulk", 1).await;
    let shown = r#"{"serviceId":"bulk","priceStroops":1,"disabled":false}"#;
    assert_eq!(client.get("/api/v1/services/bulk").await.text, shown);
    assert_eq!(client.get("/api/v1/services/bulk/").await.text, shown);
    let head = client.send("HEAD", "/api/v1/services/bulk", None).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    let priced = client.send("PATCH", "/api/v1/services/bulk/price", Some(r#"{"priceStroops":2}"#)).await;
    assert_eq!(priced.text, r#"{"serviceId":"bulk","priceStroops":2}"#);
    assert_eq!(client.post("/api/v1/services/bulk", &json!({})).await.error().2, "items must be 1-100 entries");
    let refused = client.send("PUT", "/api/v1/services/bulk", None).await;
    assert_eq!((refused.status, refused.header("allow").as_str()), (405, "GET, HEAD, POST, DELETE, OPTIONS"));
    let refused = client.send("POST", "/api/v1/services/other", None).await;
    assert_eq!((refused.status, refused.header("allow").as_str()), (405, "GET, HEAD, DELETE, OPTIONS"));
    // A key remembers the route that answered.
    let deleted = client.key("k").send("DELETE", "/api/v1/services/bulk", None).await;
    assert_eq!(deleted.status, 204);
    let encoded = client.key("k").send("DELETE", "/api/v1/services/%62ulk", None).await;
    assert!(encoded.status == 204 && encoded.replayed);
    assert_eq!(client.get("/api/v1/services/bulk").await.error(), missing("bulk"));
    // Names of literal paths are names of agents and services elsewhere.
    for (agent, service_id) in [("export.json", "total"), ("total", "summary"), ("bulk", "bulk")] {
        client.post("/api/v1/usage", &usage(agent, service_id, 2)).await;
        assert_eq!(client.get(&format!("/api/v1/usage/{agent}/{service_id}")).await.json()["total"], 2);
        register(&client, service_id, 3).await;
        assert_eq!(client.get(&format!("/api/v1/billing/{agent}/{service_id}")).await.json()["billedStroops"], 6);
        assert_eq!(client.get(&format!("/api/v1/agents/{agent}/total")).await.json()["total"], 2);
        assert_eq!(client.get(&format!("/api/v1/services/{service_id}/usage")).await.json()["total"], 2);
    }
    let refused = client.send("DELETE", "/api/v1/usage/export.json", None).await;
    assert_eq!((refused.status, refused.header("allow").as_str()), (405, "GET, HEAD, OPTIONS"));
}

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
async fn the_vectors_of_pages_hold() {
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
async fn what_is_outstanding_of_a_service_is_told_in_sum_and_by_agent() {
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

#[tokio::test]
async fn another_tenants_service_is_not_there() {
    let service = Service::start(&[]).await;
    let anyone = service.client();
    let made = anyone.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let tenant = anyone.with("x-api-key", made["key"].as_str().expect("a key"));
    register(&tenant, "mine", 5).await;
    tenant.post("/api/v1/usage", &usage("a", "mine", 1)).await;
    for (method, tail, body) in [
        ("GET", "", None),
        ("DELETE", "", None),
        ("PUT", "/metadata", Some(r#"{"description":"","owner":"o"}"#)),
        ("PATCH", "/price", Some(r#"{"priceStroops":1}"#)),
        ("PATCH", "/disabled", Some(r#"{"disabled":true}"#)),
        ("POST", "/disable", None),
        ("POST", "/enable", None),
    ] {
        let answer = anyone.send(method, &format!("/api/v1/services/mine{tail}"), body).await;
        assert_eq!(answer.error(), missing("mine"), "{method} {tail}");
    }
    assert_eq!(anyone.get("/api/v1/services/mine/usage").await.json()["total"], 0);
    assert_eq!(anyone.get("/api/v1/services/mine/agents").await.json()["items"], json!([]));
    assert_eq!(anyone.get(SERVICES).await.text, r#"{"services":[]}"#);
    let items = json!({ "items": [{ "serviceId": "mine", "priceStroops": 9 }] });
    let made = anyone.post("/api/v1/services/bulk", &items).await;
    assert!(made.text.contains(r#""created":true"#));
    let unchanged = r#"{"serviceId":"mine","priceStroops":5,"disabled":false}"#;
    assert_eq!(tenant.get("/api/v1/services/mine").await.text, unchanged);
    service.verify().await;
}

#[tokio::test]
async fn every_write_on_services_honours_a_key() {
    let service = Service::start(&[]).await;
    let client = service.client();
    register(&client, "s", 1).await;
    for (method, path, body, status) in [
        ("POST", "/bulk", Some(r#"{"items":[{"serviceId":"t","priceStroops":1}]}"#), 201),
        ("PUT", "/s/metadata", Some(r#"{"description":"","owner":"o"}"#), 200),
        ("PATCH", "/s/price", Some(r#"{"priceStroops":2}"#), 200),
        ("PATCH", "/s/price", Some("{}"), 400),
        ("PATCH", "/s/disabled", Some(r#"{"disabled":true}"#), 200),
        ("PATCH", "/s/disabled", Some(r#"{"x":true}"#), 400),
        ("POST", "/s/disable", None, 200),
        ("POST", "/s/enable", None, 200),
        ("DELETE", "/s", None, 204),
        ("DELETE", "/a%20b", None, 400),
        ("DELETE", "/none", None, 404),
    ] {
        let key = client.key(&format!("{method}{path}{status}"));
        let path = format!("{SERVICES}{path}");
        let first = key.send(method, &path, body).await;
        assert_eq!((first.status, first.replayed), (status, false), "{method} {path} {first:?}");
        let again = key.send(method, &path, body).await;
        assert!(again.same(&first) && again.replayed, "{method} {path} {again:?}");
    }
    assert_eq!(service.number("SELECT count(*) FROM events").await, 3);
    service.verify().await;
}
