//! HTTP contract, section 15.5: the audit log has each change once, with who made it, and is written with it or not at all.

use agentpay_billing::domain::audit_log::Operation;
use serde_json::{Value, json};

use crate::support::{Behaviour, Client, Receiver, Service, new_database, run, url, usage, wait_until};

const AUDIT: &str = "/api/v1/audit";
const KEYS: &str = "/api/v1/api-keys";
const SERVICES: &str = "/api/v1/services";
const WEBHOOKS: &str = "/api/v1/webhooks";

async fn entries(operator: &Client, query: &str) -> Vec<Value> {
    let list = operator.get(&format!("{AUDIT}{query}")).await;
    assert_eq!(list.status, 200, "{list:?}");
    list.json()["items"].as_array().expect("items").clone()
}

/// The entry that was added to the `seen` earlier ones.
async fn added(operator: &Client, seen: &mut usize, case: &str) -> Value {
    let entries = entries(operator, "").await;
    *seen += 1;
    assert_eq!(entries.len(), *seen, "{case}: {entries:?}");
    entries[0].clone()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn shows(entry: &Value, operation: &str, tenant: &Value, object: &Value, before: &Value, after: &Value) {
    assert_eq!(entry["operation"], operation, "{entry}");
    assert_eq!((&entry["tenantId"], &entry["objectId"]), (tenant, object), "{entry}");
    assert_eq!((&entry["before"], &entry["after"]), (before, after), "{entry}");
}

#[tokio::test]
async fn each_operation_leaves_one_entry_with_what_it_changed_and_who_asked_for_it() {
    let settings = [("ADMIN_API_KEY", "admin"), ("TRUST_PROXY", "1"), ("ALLOW_ADMIN_RESET", "on")];
    let service = Service::start(&settings).await;
    let client = service.client().with("x-forwarded-for", "192.0.2.7").with("x-request-id", "r-7");
    let operator = client.with("x-api-key", "admin");
    let none = Value::Null;
    let mut seen = 0;
    let mut operations = Vec::new();

    let key = operator.post(KEYS, &json!({ "label": "l" })).await.json();
    let (tenant, prefix) = (key["tenantId"].clone(), json!(text(&key["key"])[..12]));
    let entry = added(&operator, &mut seen, "a key").await;
    let created = entry["after"]["createdAt"].clone();
    let shown = json!({ "prefix": prefix, "label": "l", "createdAt": created, "tenantId": tenant });
    shows(&entry, "api_key.created", &tenant, &prefix, &none, &shown);
    assert_eq!((text(&entry["actor"]), text(&entry["address"])), ("admin", "192.0.2.7"));
    assert_eq!((text(&entry["requestId"]), &entry["changedAt"]), ("r-7", &created));
    operations.push("api_key.created");

    let owner = client.with("x-api-key", text(&key["key"]));
    let plain = |price: i64| json!({ "serviceId": "s", "priceStroops": price, "disabled": false });
    let known = |price: i64, disabled: bool, owner: &str| {
        let mut service = plain(price);
        service["disabled"] = disabled.into();
        service["description"] = "d".into();
        service["owner"] = owner.into();
        service
    };
    let s = json!("s");
    for (method, path, body, operation, before, after) in [
        ("POST", SERVICES, r#"{"serviceId":"s","priceStroops":1}"#, "service.created", none.clone(), plain(1)),
        ("POST", SERVICES, r#"{"serviceId":"s","priceStroops":2}"#, "service.updated", plain(1), plain(2)),
        (
            "POST",
            "/api/v1/services/bulk",
            r#"{"items":[{"serviceId":"s","priceStroops":3},{"serviceId":"s","priceStroops":9},{"serviceId":"","priceStroops":1}]}"#,
            "service.updated",
            plain(2),
            plain(3),
        ),
        (
            "PUT",
            "/api/v1/services/s/metadata",
            r#"{"description":"d","owner":"o"}"#,
            "service.updated",
            plain(3),
            known(3, false, "o"),
        ),
        (
            "PATCH",
            "/api/v1/services/s/price",
            r#"{"priceStroops":4}"#,
            "service.updated",
            known(3, false, "o"),
            known(4, false, "o"),
        ),
        (
            "POST",
            SERVICES,
            r#"{"serviceId":"s","priceStroops":4,"description":"d","owner":"p"}"#,
            "service.updated",
            known(4, false, "o"),
            known(4, false, "p"),
        ),
        (
            "PATCH",
            "/api/v1/services/s/disabled",
            r#"{"disabled":true}"#,
            "service.disabled",
            known(4, false, "p"),
            known(4, true, "p"),
        ),
        ("POST", "/api/v1/services/s/enable", "", "service.enabled", known(4, true, "p"), known(4, false, "p")),
        ("POST", "/api/v1/services/s/disable", "", "service.disabled", known(4, false, "p"), known(4, true, "p")),
        ("DELETE", "/api/v1/services/s", "", "service.deleted", known(4, true, "p"), none.clone()),
    ] {
        let answer = owner.send(method, path, (!body.is_empty()).then_some(body)).await;
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        let entry = added(&operator, &mut seen, path).await;
        shows(&entry, operation, &tenant, &s, &before, &after);
        assert_eq!(entry["actor"], prefix, "{entry}");
        operations.push(operation);
    }
    let two = r#"{"items":[{"serviceId":"b","priceStroops":1},{"serviceId":"a","priceStroops":2}]}"#;
    assert_eq!(owner.send("POST", "/api/v1/services/bulk", Some(two)).await.status, 201);
    let both = entries(&operator, "?operation=service.created&limit=2").await;
    assert_eq!((&both[0]["objectId"], &both[1]["objectId"]), (&json!("a"), &json!("b")));
    seen += 2;

    let secret = "https://user:secret-word@example.com/hook?token=secret-word";
    let hook = owner.post(WEBHOOKS, &json!({ "url": secret, "events": ["*"] })).await.json();
    let entry = added(&operator, &mut seen, "a webhook").await;
    let shown = |created: &Value, events: &str| json!({ "id": hook["id"], "url": "https://***@example.com/hook?***", "events": [events], "createdAt": created });
    let created = entry["after"]["createdAt"].clone();
    shows(&entry, "webhook.created", &tenant, &hook["id"], &none, &shown(&created, "*"));
    let path = format!("{WEBHOOKS}/{}", text(&hook["id"]));
    assert_eq!(owner.send("PATCH", &path, Some(r#"{"events":["usage.settled"]}"#)).await.status, 200);
    let entry = added(&operator, &mut seen, "a changed webhook").await;
    let settled = shown(&created, "usage.settled");
    shows(&entry, "webhook.updated", &tenant, &hook["id"], &shown(&created, "*"), &settled);
    assert_eq!(owner.send("DELETE", &path, None).await.status, 204);
    let entry = added(&operator, &mut seen, "a deleted webhook").await;
    shows(&entry, "webhook.deleted", &tenant, &hook["id"], &settled, &none);
    operations.extend(["webhook.created", "webhook.updated", "webhook.deleted"]);

    let config = operator.get("/api/v1/config").await.json()["config"].clone();
    assert_eq!(operator.send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":7}"#)).await.status, 200);
    let mut changed = config.clone();
    changed["bulkMaxItems"] = 7.into();
    shows(&added(&operator, &mut seen, "a limit").await, "config.updated", &none, &none, &config, &changed);
    let paused = |paused: bool| json!({ "paused": paused });
    for (action, operation, before) in [("pause", "writes.paused", false), ("unpause", "writes.resumed", true)] {
        assert_eq!(operator.send("POST", &format!("/api/v1/admin/{action}"), None).await.status, 200);
        let entry = added(&operator, &mut seen, action).await;
        shows(&entry, operation, &none, &none, &paused(before), &paused(!before));
        operations.push(operation);
    }
    let rotated = operator.send("POST", &format!("{KEYS}/{}/rotate", text(&prefix)), None).await.json();
    let entry = added(&operator, &mut seen, "rotated").await;
    assert_eq!((text(&entry["operation"]), &entry["objectId"]), ("api_key.rotated", &prefix));
    assert_eq!((&entry["before"]["prefix"], &entry["after"]["prefix"]), (&prefix, &json!(text(&rotated["key"])[..12])));
    operations.push("api_key.rotated");
    assert_eq!(operator.send("DELETE", &format!("{KEYS}/{}", text(&prefix)), None).await.status, 204);
    assert_eq!(added(&operator, &mut seen, "revoked").await["operation"], "api_key.revoked");

    let cleared = operator.send("POST", "/api/v1/admin/reset", None).await.json()["cleared"].clone();
    let entry = added(&operator, &mut seen, "a reset").await;
    shows(&entry, "data.reset", &none, &none, &cleared, &json!({ "paused": false, "config": config }));
    assert!(seen > 20, "a reset deletes no entry");
    operations.extend(["config.updated", "api_key.revoked", "data.reset"]);

    // The service itself disables a webhook: see below. A rotated secret is a test of deliveries.
    operations.extend(["webhook.disabled", "webhook.secret_rotated"]);
    // What commands do: tests of the command line.
    operations.extend(["api_key.rotation_cancelled", "webhook.deliveries_requested", "secrets.encrypted"]);
    operations.push("secrets.decrypted");
    for operation in Operation::ALL.map(Operation::as_str) {
        assert!(operations.contains(&operation), "no case for {operation}");
    }
    let everything = operator.get(&format!("{AUDIT}?limit=1000")).await.text;
    let hash = "SELECT count(*) FROM audit_log WHERE before::text || after::text LIKE '%secret%'";
    assert!(!everything.contains("secret-word") && !everything.contains(text(&key["key"])), "{everything}");
    assert!(!everything.contains(text(&hook["secret"])) && service.number(hash).await == 0);
}

#[tokio::test]
async fn what_changes_nothing_leaves_no_entry() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.key("k").post(SERVICES, &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    let mut seen = 0;
    assert_eq!(added(&client, &mut seen, "the first").await["actor"], "anonymous");
    let config = client.get("/api/v1/config").await.json()["config"].to_string();
    for (method, path, body, status) in [
        ("POST", "/api/v1/usage", r#"{"agent":"a","serviceId":"s","requests":1}"#, 201),
        ("POST", "/api/v1/settle", r#"{"agent":"a","serviceId":"s"}"#, 200),
        ("DELETE", "/api/v1/usage/a/s", "", 200),
        ("POST", SERVICES, r#"{"serviceId":"s","priceStroops":1}"#, 200),
        ("POST", "/api/v1/services/bulk", r#"{"items":[{"serviceId":"s","priceStroops":1}]}"#, 201),
        ("PATCH", "/api/v1/services/s/price", r#"{"priceStroops":1}"#, 200),
        ("PATCH", "/api/v1/services/s/price", r#"{"priceStroops":-1}"#, 400),
        ("PATCH", "/api/v1/services/t/price", r#"{"priceStroops":1}"#, 404),
        ("POST", "/api/v1/services/s/enable", "", 200),
        ("DELETE", "/api/v1/services/t", "", 404),
        ("POST", "/api/v1/admin/unpause", "", 200),
        ("PATCH", "/api/v1/config", "{}", 200),
        ("PATCH", "/api/v1/config", config.as_str(), 200),
        ("PATCH", "/api/v1/config", r#"{"bulkMaxItems":0}"#, 400),
        ("DELETE", "/api/v1/api-keys/apk_00000000", "", 404),
        ("POST", "/api/v1/admin/reset", "", 404),
    ] {
        let answer = client.send(method, path, (!body.is_empty()).then_some(body)).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(entries(&client, "").await.len(), 1, "{method} {path}");
    }
    let replay = client.key("k").post(SERVICES, &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    assert!(replay.replayed);
    assert_eq!(entries(&client, "").await.len(), 1);
}

#[tokio::test]
async fn an_entry_commits_with_its_change_or_not_at_all() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;";
    sqlx::raw_sql(refuse).execute(&service.pool).await.expect("a function");
    let body = json!({ "serviceId": "s", "priceStroops": 1 });
    for (name, rule) in [
        ("services", "CONSTRAINT TRIGGER late AFTER INSERT ON services DEFERRABLE INITIALLY DEFERRED"),
        ("audit_log", "TRIGGER late BEFORE INSERT ON audit_log"),
    ] {
        let create = format!("CREATE {rule} FOR EACH ROW EXECUTE FUNCTION refuse()");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&service.pool).await.expect("a trigger");
        assert_eq!(client.post(SERVICES, &body).await.status, 500, "{name}");
        for table in ["SELECT count(*) FROM services", "SELECT count(*) FROM audit_log"] {
            assert_eq!(service.number(table).await, 0, "{name}: {table}");
        }
        let drop = format!("DROP TRIGGER late ON {name}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&service.pool).await.expect("no trigger");
    }
    assert_eq!(client.post(SERVICES, &body).await.status, 201);
    assert_eq!(service.number("SELECT count(*) FROM audit_log").await, 1);
}

#[tokio::test]
async fn the_log_is_read_in_pages_and_by_filters() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for number in 0..5 {
        client.post(SERVICES, &json!({ "serviceId": format!("s{number}"), "priceStroops": 1 })).await;
    }
    client.send("PATCH", "/api/v1/services/s3/price", Some(r#"{"priceStroops":2}"#)).await;
    client.send("POST", "/api/v1/admin/pause", None).await;
    // Those of one moment keep their order.
    sqlx::query(
        "UPDATE audit_log SET changed_at = (SELECT min(changed_at) FROM audit_log) WHERE operation = 'service.created'",
    )
    .execute(&service.pool)
    .await
    .expect("SQL");
    let all: Vec<Value> = entries(&client, "").await.iter().map(|entry| entry["id"].clone()).collect();
    assert_eq!(all.len(), 7);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for _ in 0..4 {
        let page = client.get(&format!("{AUDIT}?limit=2{cursor}")).await.json();
        seen.extend(page["items"].as_array().expect("items").iter().map(|entry| entry["id"].clone()));
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, all);
    let moment = entries(&client, "?operation=writes.paused").await[0]["changedAt"].as_i64().expect("a moment");
    for (query, count) in [
        ("?objectId=s3".to_owned(), 2),
        ("?objectId=s3&operation=service.updated".to_owned(), 1),
        ("?tenantId=public".to_owned(), 6),
        ("?tenantId=other".to_owned(), 0),
        ("?actor=anonymous&actor=cli".to_owned(), 7),
        ("?actor=cli".to_owned(), 0),
        ("?actor=".to_owned(), 7),
        (format!("?since={moment}"), 1),
        (format!("?since={}", moment + 1), 0),
        ("?limit=0".to_owned(), 1),
    ] {
        assert_eq!(entries(&client, &query).await.len(), count, "{query}");
    }
    for (query, message) in [
        ("cursor=", "cursor is malformed"),
        ("cursor=eA", "cursor is malformed"),
        ("cursor=MTo", "cursor is malformed"),
        ("page=1", "unexpected query parameter: page"),
    ] {
        assert_eq!(client.get(&format!("{AUDIT}?{query}")).await.error().2, message, "{query}");
    }
    // The view for people shows the same, and what changed.
    let changes: Vec<(Option<String>, Option<String>)> =
        sqlx::query_as("SELECT object_id, changes FROM recent_changes LIMIT 2")
            .fetch_all(&service.pool)
            .await
            .expect("the view");
    let expected = [(None, "paused: false -> true"), (Some("s3"), "priceStroops: 1 -> 2")]
        .map(|(object, changes)| (object.map(str::to_owned), Some(changes.to_owned())));
    assert_eq!(changes, expected);
}

#[tokio::test]
async fn a_webhook_that_the_service_gives_up_is_an_entry_of_the_service() {
    let service = Service::start(&[("WEBHOOK_ALLOW_PRIVATE", "true")]).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    receiver.answer(&[Behaviour::Status(410)]);
    let hook = client.post(WEBHOOKS, &json!({ "url": receiver.url, "events": ["*"] })).await.json();
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    wait_until(async || !entries(&client, "?actor=service").await.is_empty()).await;
    let entry = entries(&client, "?actor=service").await[0].clone();
    assert_eq!((text(&entry["operation"]), &entry["objectId"]), ("webhook.disabled", &hook["id"]));
    assert_eq!((&entry["address"], &entry["requestId"]), (&Value::Null, &Value::Null));
    assert_eq!(entry["before"].get("disabledAt"), None);
    assert_eq!(entry["after"]["disabledAt"], entry["changedAt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_command_makes_is_an_entry_of_the_command_line() {
    let database = new_database().await;
    let environment = [("DATABASE_URL", url(&database))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let made = run(&["keys", "create", "--label", "by hand"], &environment).await;
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let prefix = &text(&made["key"])[..12];
    assert!(run(&["keys", "revoke", prefix], &environment).await.status.success());
    let service = Service::start_on(database, &[]).await;
    let entries = entries(&service.client(), "").await;
    for (entry, operation) in entries.iter().zip(["api_key.revoked", "api_key.created"]) {
        assert_eq!((text(&entry["operation"]), text(&entry["objectId"])), (operation, prefix));
        assert_eq!((text(&entry["actor"]), &entry["address"]), ("cli", &Value::Null));
        assert!(entry["requestId"].is_string());
    }
    assert_eq!(entries.len(), 2);
}
