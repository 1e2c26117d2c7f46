//! HTTP contract, section 13.1: each check in its order, each message in its words.

use serde_json::{Value, json};

use crate::support::{Answer, Behaviour, Client, Receiver, Service, usage};

const WEBHOOKS: &str = "/api/v1/webhooks";
const PRIVATE: &[(&str, &str)] = &[("WEBHOOK_ALLOW_PRIVATE", "true")];

fn hook(url: &str, events: &[&str]) -> Value {
    json!({ "url": url, "events": events })
}

async fn make(client: &Client, url: &str, events: &[&str]) -> Value {
    let made = client.post(WEBHOOKS, &hook(url, events)).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()
}

fn refusal(answer: &Answer) -> (u16, String) {
    let (status, _, message) = answer.error();
    (status, message)
}

#[tokio::test]
async fn a_webhook_is_made_with_a_secret_that_is_shown_once() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let made = client.key("ignored").post(WEBHOOKS, &hook(&receiver.url, &["*", "usage.recorded"])).await;
    assert_eq!((made.status, made.replayed, made.header("cache-control").as_str()), (201, false, "no-store"));
    let again = client.key("ignored").post(WEBHOOKS, &hook(&receiver.url, &["*"])).await;
    assert_eq!((again.status, again.replayed), (201, false));
    let body = made.json();
    let (id, secret) = (body["id"].as_str().expect("an id"), body["secret"].as_str().expect("a secret"));
    assert!(id.len() == 19 && id.starts_with("wh_") && secret.len() == 50 && secret.starts_with("whsec_"), "{body}");
    let expected =
        format!(r#"{{"id":"{id}","url":"{}","events":["*","usage.recorded"],"secret":"{secret}"}}"#, receiver.url);
    assert_eq!(made.text, expected);

    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    receiver.reach(2).await;
    let one = format!("{WEBHOOKS}/{id}");
    let later = [
        client.get(WEBHOOKS).await,
        client.get(&one).await,
        client.send("PATCH", &one, Some(r#"{"events":["*"]}"#)).await,
        client.post(&format!("{one}/test"), &json!({})).await,
        client.get(&format!("{one}/deliveries")).await,
    ];
    for answer in later {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.text.contains(&secret[6..]) && !answer.text.contains("secret"), "{}", answer.text);
    }
    let holds_secrets = "SELECT count(*) FROM information_schema.columns \
        WHERE table_schema = 'public' AND column_name LIKE '%secret%' AND table_name <> 'webhooks'";
    assert_eq!(service.number(holds_secrets).await, 0);
    let views_of_webhooks = "SELECT count(*) FROM information_schema.view_column_usage \
        WHERE table_name = 'webhooks' AND column_name = 'secret'";
    assert_eq!(service.number(views_of_webhooks).await, 0);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 0);
    let told = "SELECT count(*) FROM events WHERE payload::text LIKE '%whsec%'";
    assert_eq!(service.number(told).await, 0);
}

#[tokio::test]
async fn creation_checks_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let url = (400, "url must be an http(s) URL up to 2048 chars");
    let target = (400, "url must not target a private, loopback or link-local address");
    let events = (400, "events must be a non-empty array of strings");
    let long = format!("https://example.com/{}", "a".repeat(2030));
    for (body, expected) in [
        (json!([]), (400, "body must be a JSON object")),
        (json!({ "secret": 1, "url": 1 }), (400, "unexpected field: secret")),
        (json!({}), url),
        (json!({ "url": null, "events": 1 }), url),
        (json!({ "url": "ftp://example.com", "events": [] }), url),
        (json!({ "url": "https://", "events": ["*"] }), url),
        (json!({ "url": long, "events": ["*"] }), url),
        (json!({ "url": "http://127.0.0.1/", "events": [] }), target),
        (json!({ "url": "http://[::ffff:10.0.0.1]/", "events": [] }), target),
        (json!({ "url": "http://169.254.169.254/latest", "events": [] }), target),
        (json!({ "url": "http://a.localhost./", "events": [] }), target),
        (json!({ "url": "http://2130706433/", "events": [] }), target),
        (json!({ "url": "https://example.com/" }), events),
        (json!({ "url": "https://example.com/", "events": [] }), events),
        (json!({ "url": "https://example.com/", "events": "*" }), events),
        (json!({ "url": "https://example.com/", "events": ["*", 1] }), events),
        (json!({ "url": "https://example.com/", "events": ["*", "nope", "no"] }), (400, "unknown event type: nope")),
    ] {
        let answer = client.post(WEBHOOKS, &body).await;
        assert_eq!(refusal(&answer), (expected.0, expected.1.to_owned()), "{body}");
    }
    let types = ["usage.recorded", "usage.settled", "usage.reset", "service.disabled", "service.enabled"];
    make(&client, "https://example.com/a", &types).await;
    make(&client, "http://example.com:8080/b", &["service.deleted", "webhook.test", "*"]).await;
}

#[tokio::test]
async fn a_tenants_webhooks_are_capped_exactly() {
    let service = Service::start(&[]).await;
    sqlx::query("UPDATE runtime_config SET webhook_store_max_keys = 3").execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
    let client = service.tenant().await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.post(WEBHOOKS, &hook("https://example.com", &["*"])).await })
        })
        .collect();
    let mut refused = 0;
    for task in tasks {
        let answer = task.await.expect("a client");
        if answer.status != 201 {
            let full = (429, "store_capacity_exceeded".to_owned(), "webhook store capacity exceeded".to_owned());
            assert_eq!(answer.error(), full);
            assert!(!answer.headers.contains_key("retry-after"));
            refused += 1;
        }
    }
    assert_eq!(refused, 5);
    // For each tenant; a deletion frees capacity.
    make(&service.client(), "https://example.com", &["*"]).await;
    let id = client.get(WEBHOOKS).await.json()["items"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(client.send("DELETE", &format!("{WEBHOOKS}/{id}"), None).await.status, 204);
    make(&client, "https://example.com", &["*"]).await;
}

#[tokio::test]
async fn a_change_checks_in_order_and_is_all_or_nothing() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let made = make(&client, "https://example.com/a", &["usage.recorded"]).await;
    let one = format!("{WEBHOOKS}/{}", made["id"].as_str().expect("an id"));
    let nowhere = "/api/v1/webhooks/wh_0123456789abcdef";
    let missing = (404, "webhook wh_0123456789abcdef not registered");
    for (path, body, expected) in [
        (nowhere, json!([]), (400, "body must be a JSON object")),
        (nowhere, json!({ "x": 1 }), (400, "unexpected field: x")),
        (nowhere, json!({ "url": null }), (400, "url must be an http(s) URL up to 2048 chars")),
        (
            nowhere,
            json!({ "url": "http://10.0.0.1" }),
            (400, "url must not target a private, loopback or link-local address"),
        ),
        (nowhere, json!({ "events": [] }), (400, "events must be a non-empty array of strings")),
        (nowhere, json!({ "events": ["nope"] }), missing),
        (nowhere, json!({}), missing),
        (&one, json!({}), (400, "at least one of url or events is required")),
        (&one, json!({ "url": "https://example.com/b", "events": ["nope"] }), (400, "unknown event type: nope")),
    ] {
        let answer = client.send("PATCH", path, Some(&body.to_string())).await;
        assert_eq!(refusal(&answer), (expected.0, expected.1.to_owned()), "{body}");
    }
    let before = client.get(&one).await.json();
    assert_eq!((&before["url"], &before["events"]), (&json!("https://example.com/a"), &json!(["usage.recorded"])));
    let changed = client.send("PATCH", &one, Some(r#"{"url":"https://example.com/b"}"#)).await;
    let created_at = before["createdAt"].as_i64().expect("ms");
    let expected = format!(
        r#"{{"id":{},"url":"https://example.com/b","events":["usage.recorded"],"createdAt":{created_at}}}"#,
        made["id"]
    );
    assert_eq!((changed.status, changed.text.as_str()), (200, expected.as_str()));
    assert_eq!(client.get(&one).await.text, expected);
}

#[tokio::test]
async fn webhooks_are_listed_by_creation_with_cursors_that_are_positions() {
    let service = Service::start(&[]).await;
    let client = service.tenant().await;
    assert_eq!(client.get(WEBHOOKS).await.text, r#"{"items":[],"total":0,"nextCursor":null}"#);
    let mut ids = Vec::new();
    for _ in 0..5 {
        service.clock.advance_ms(10);
        ids.push(make(&client, "https://example.com", &["*"]).await["id"].clone());
    }
    let page = |path: String| {
        let client = client.clone();
        async move { client.get(&path).await.json() }
    };
    let first = page(format!("{WEBHOOKS}?limit=2")).await;
    assert_eq!((first["items"][0]["id"].clone(), first["items"][1]["id"].clone()), (ids[0].clone(), ids[1].clone()));
    assert_eq!(first["total"], 5);
    let cursor = first["nextCursor"].as_str().expect("a cursor").to_owned();
    // The item of a cursor may go.
    client.send("DELETE", &format!("{WEBHOOKS}/{}", ids[1].as_str().expect("an id")), None).await;
    let second = page(format!("{WEBHOOKS}?limit=3&cursor={cursor}")).await;
    let listed: Vec<Value> = second["items"].as_array().expect("items").iter().map(|item| item["id"].clone()).collect();
    assert_eq!((listed, &second["nextCursor"], &second["total"]), (ids[2..].to_vec(), &json!(null), &json!(4)));
    for (query, message) in [
        ("page=1", "unexpected query parameter: page"),
        ("cursor=", "cursor is malformed"),
        ("cursor=!!", "cursor is malformed"),
        ("cursor=bWlzc2luZy1rZXk", "cursor is malformed"),
    ] {
        assert_eq!(refusal(&client.get(&format!("{WEBHOOKS}?{query}")).await), (400, message.to_owned()));
    }
    // HTTP contract, section 21.3: after 1767225600000, wh_0123456789abcdef.
    let vector = page(format!("{WEBHOOKS}?cursor=MTc2NzIyNTYwMDAwMDp3aF8wMTIzNDU2Nzg5YWJjZGVm")).await;
    assert_eq!(vector["items"].as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn a_webhook_of_another_tenant_does_not_exist() {
    let service = Service::start(&[]).await;
    let (owner, other) = (service.tenant().await, service.tenant().await);
    let made = make(&owner, "https://example.com", &["*"]).await;
    let id = made["id"].as_str().expect("an id");
    let one = format!("{WEBHOOKS}/{id}");
    let not_there = (404, format!("webhook {id} not registered"));
    for (method, path, body) in [
        ("GET", one.clone(), None),
        ("PATCH", one.clone(), Some(r#"{"events":["*"]}"#)),
        ("DELETE", one.clone(), None),
        ("POST", format!("{one}/test"), None),
        ("GET", format!("{one}/deliveries"), None),
    ] {
        assert_eq!(refusal(&other.send(method, &path, body).await), not_there, "{method} {path}");
    }
    assert_eq!(other.get(WEBHOOKS).await.json()["total"], 0);
    assert_eq!(owner.get(&one).await.status, 200);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 0);
}

#[tokio::test]
async fn a_test_is_one_real_attempt_to_this_webhook_only() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver, other) = (service.client(), Receiver::start().await, Receiver::start().await);
    make(&client, &other.url, &["*", "webhook.test"]).await;
    let made = make(&client, &receiver.url, &["usage.settled"]).await;
    let id = made["id"].as_str().expect("an id");
    let test = format!("{WEBHOOKS}/{id}/test");
    receiver.answer(&[Behaviour::Status(202)]);
    let tested = client.send("POST", &test, None).await;
    let delivered_at = tested.json()["deliveredAt"].as_i64().expect("ms");
    let expected = format!(r#"{{"id":"{id}","deliveredAt":{delivered_at},"simulated":false,"status":202}}"#);
    assert_eq!((tested.status, tested.text.as_str()), (200, expected.as_str()));
    let received = receiver.received();
    let body = received[0].json();
    assert_eq!((&body["type"], &body["data"]), (&json!("webhook.test"), &json!({ "id": id, "url": receiver.url })));
    let verifier = standardwebhooks::Webhook::new(made["secret"].as_str().expect("a secret")).expect("a secret");
    verifier.verify(received[0].body.as_bytes(), &received[0].headers).expect("signed");

    // Not accepted: told, and not tried again.
    for (behaviour, reason) in [(500, "status 500"), (302, "status 302")] {
        receiver.answer(&[Behaviour::Status(behaviour)]);
        let failed = client.send("POST", &test, None).await.error();
        let message = format!("webhook {id} did not accept the test delivery: {reason}");
        assert_eq!(failed, (502, "webhook_failed".to_owned(), message));
    }
    service.clock.advance_ms(3_600_000);
    let report = service.dispatcher.run_once().await.expect("dispatcher");
    assert!(report.outcomes.is_empty() && receiver.received().len() == 3 && other.received().is_empty());
    let page = client.get(&format!("{WEBHOOKS}/{id}/deliveries")).await.json();
    let told: Vec<_> =
        (0..3).map(|place| (&page["items"][place]["status"], &page["items"][place]["attempts"])).collect();
    assert_eq!(told, [(&json!("failed"), &json!(1)), (&json!("failed"), &json!(1)), (&json!("delivered"), &json!(1))]);
    assert_eq!(page["items"][2]["eventId"], body["id"]);
    assert_eq!(service.number("SELECT count(*) FROM events WHERE type = 'webhook.test'").await, 3);
    // A receiver that is gone gives its webhook up; a test works all the same, and does not enable it.
    receiver.answer(&[Behaviour::Status(410)]);
    assert_eq!(client.send("POST", &test, None).await.status, 502);
    assert!(client.get(&format!("{WEBHOOKS}/{id}")).await.json()["disabledAt"].is_i64());
    assert_eq!(client.send("POST", &test, None).await.status, 200);
    assert!(client.get(&format!("{WEBHOOKS}/{id}")).await.json()["disabledAt"].is_i64());
}

#[tokio::test]
async fn a_test_says_why_it_failed() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "4000"), ("WEBHOOK_ALLOW_PRIVATE", "true")]).await;
    let client = service.client();
    let receiver = Receiver::start().await;
    let reason = |answer: Answer| {
        let (status, code, message) = answer.error();
        assert_eq!((status, code.as_str()), (502, "webhook_failed"));
        message.split_once(": ").expect("a reason").1.to_owned()
    };
    let test_of = |made: &Value| format!("{WEBHOOKS}/{}/test", made["id"].as_str().expect("an id"));
    let silent = make(&client, &receiver.url, &["*"]).await;
    receiver.answer(&[Behaviour::Silence]);
    assert_eq!(reason(client.send("POST", &test_of(&silent), None).await), "timeout");
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("http://{}/", listener.local_addr().expect("its address"))
    };
    let closed = make(&client, &closed, &["*"]).await;
    assert_eq!(reason(client.send("POST", &test_of(&closed), None).await), "connection failed");
    // The same webhook, in a service that does not allow it.
    let strict = service.beside().await;
    assert_eq!(reason(strict.client().send("POST", &test_of(&silent), None).await), "private address");
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn writes_need_a_key_where_keys_are_required() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]).await;
    let client = service.client();
    let one = format!("{WEBHOOKS}/wh_0123456789abcdef");
    for (method, path) in [("POST", WEBHOOKS), ("PATCH", &one), ("DELETE", &one), ("POST", &format!("{one}/test"))] {
        let refused = client.send(method, path, Some("{}")).await.error();
        assert_eq!((refused.0, refused.2.as_str()), (401, "valid X-API-Key required for write request"));
    }
    assert_eq!(client.get(WEBHOOKS).await.status, 200);
}

#[tokio::test]
async fn a_url_of_control_characters_is_refused() {
    let service = Service::start(&[]).await;
    let url = format!("https://example.com/{}", "\u{1}".repeat(2000));
    let body = json!({ "url": url, "events": ["*"] });
    let error = service.client().post("/api/v1/webhooks", &body).await.error();
    assert_eq!((error.0, error.2.as_str()), (400, "url must be an http(s) URL up to 2048 chars"));
}

#[tokio::test]
async fn a_webhook_keeps_each_name_of_a_type_once() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let webhook = |events: Vec<&str>| json!({ "url": "https://example.com/", "events": events });
    let mut names = vec!["*"; 10_000];
    names.extend(["usage.reset", "*", "usage.settled"]);
    let created = client.post("/api/v1/webhooks", &webhook(names)).await.json();
    assert_eq!(created["events"], json!(["*", "usage.reset", "usage.settled"]), "{created}");
    let path = format!("/api/v1/webhooks/{}", created["id"].as_str().expect("an id"));
    let changed = client.send("PATCH", &path, Some(r#"{"events":["usage.reset","usage.reset"]}"#)).await.json();
    assert_eq!(changed["events"], json!(["usage.reset"]), "{changed}");
    // Of any number of unknown names the first one is named.
    let names: Vec<String> = (0..1000).map(|number| format!("no.{number}")).collect();
    let refused = client.post("/api/v1/webhooks", &webhook(names.iter().map(String::as_str).collect())).await;
    assert_eq!(refused.error().2, "unknown event type: no.0");
}
