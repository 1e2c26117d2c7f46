//! HTTP contract, section 11: one service: its registration, changes and removal, with their exact bodies.

mod lists;
mod registration;

use serde_json::json;

use super::invalid;
use crate::support::{Answer, Client, Service, usage};

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

fn missing(id: &str) -> (u16, String, String) {
    (404, "not_found".to_owned(), format!("service {id} is not registered"))
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
    let shown = client.get("/api/v1/services/s").await;
    assert_eq!(shown.text, r#"{"serviceId":"s","priceStroops":1,"disabled":false}"#);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 5);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'service.disabled'").await, 2);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'service.enabled'").await, 2);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'service.deleted'").await, 1);
    service.verify().await;
}

#[tokio::test]
async fn an_invalid_id_is_refused_before_anything_else() {
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
async fn literal_path_segments_are_valid_ids() {
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
    // A key is stored with the route that answered.
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
async fn a_service_of_another_tenant_does_not_exist() {
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
