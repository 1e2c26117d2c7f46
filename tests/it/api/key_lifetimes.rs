//! HTTP contract, sections 12 and 8.1: keys that expire, that replace each other, that have a limit, and when each was
//! last used. The clock of the database decides.

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use crate::support::{Client, Process, Service, foreign_clock, new_database, pool, url, wait_until};

const KEYS: &str = "/api/v1/api-keys";
const SERVICES: &str = "/api/v1/services";
const REQUIRED: &[(&str, &str)] = &[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")];
const DAY_MS: i64 = 86_400_000;

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn prefix(made: &Value) -> &str {
    &text(&made["key"])[..12]
}

async fn make(operator: &Client, body: Value) -> Value {
    let made = operator.post(KEYS, &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()
}

async fn rotate(operator: &Client, prefix: &str, body: Value) -> Value {
    let rotated = operator.post(&format!("{KEYS}/{prefix}/rotate"), &body).await;
    assert_eq!(rotated.status, 201, "{rotated:?}");
    assert_eq!(rotated.header("cache-control"), "no-store");
    rotated.json()
}

/// Whether a write with the key is accepted. Its body is not: nothing changes.
async fn is_live(anyone: &Client, made: &Value) -> bool {
    let answer = anyone.with("x-api-key", text(&made["key"])).send("POST", "/api/v1/usage", Some("{}")).await;
    assert!(matches!(answer.status, 400 | 401), "{answer:?}");
    answer.status == 400
}

async fn end(pool: &PgPool, column: &str, made: &Value) {
    let sql = format!("UPDATE api_keys SET {column} = now() WHERE prefix = '{}'", prefix(made));
    sqlx::query(AssertSqlSafe(sql)).execute(pool).await.expect("SQL");
}

#[tokio::test]
async fn the_new_members_are_checked_in_order_and_shown_as_they_were_sent() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let scopes = "scopes must be a non-empty array of usage:write, settle:write, read, webhooks or admin";
    let expiry = "expiresAt must be a time in the future, in milliseconds since the Unix epoch";
    let limit = "rateLimitPerWindow must be an integer between 1 and 1000000";
    for (body, message) in [
        (r#"{"label":"l","tenantId":"","scopes":[]}"#, "tenantId must be a string of 1-64 chars"),
        (r#"{"label":"l","scopes":[],"expiresAt":1}"#, scopes),
        (r#"{"label":"l","scopes":null}"#, scopes),
        (r#"{"label":"l","scopes":"read"}"#, scopes),
        (r#"{"label":"l","scopes":["read","write"]}"#, scopes),
        (r#"{"label":"l","scopes":["read",1]}"#, scopes),
        (r#"{"label":"l","expiresAt":1,"rateLimitPerWindow":0}"#, expiry),
        (r#"{"label":"l","expiresAt":null}"#, expiry),
        (r#"{"label":"l","expiresAt":"2100-01-01"}"#, expiry),
        (r#"{"label":"l","expiresAt":253402300800000}"#, expiry),
        (r#"{"label":"l","rateLimitPerWindow":0}"#, limit),
        (r#"{"label":"l","rateLimitPerWindow":1000001}"#, limit),
        (r#"{"label":"l","rateLimitPerWindow":1.5}"#, limit),
    ] {
        let answer = client.send("POST", KEYS, Some(body)).await;
        assert_eq!(answer.error(), (400, "invalid_request".to_owned(), message.to_owned()), "{body}");
    }
    let later = service.clock.now().as_ms() + DAY_MS;
    let body = json!({ "rateLimitPerWindow": 5, "expiresAt": later, "scopes": ["admin"], "label": "l" });
    let made = client.post(KEYS, &body).await;
    let (key, tenant) = (made.json()["key"].clone(), made.json()["tenantId"].clone());
    let limits = format!(r#""scopes":["admin"],"expiresAt":{later},"rateLimitPerWindow":5"#);
    assert_eq!(made.text, format!(r#"{{"key":{key},"label":"l","tenantId":{tenant},{limits}}}"#));
    let list = client.get(KEYS).await;
    let created = list.json()["items"][0]["createdAt"].clone();
    let item = format!(
        r#"{{"prefix":"{}","label":"l","createdAt":{created},"tenantId":{tenant},{limits}}}"#,
        &text(&key)[..12]
    );
    assert_eq!(list.text, format!(r#"{{"items":[{item}],"total":1,"nextCursor":null}}"#));
}

#[tokio::test]
async fn an_expired_key_counts_as_revoked_on_every_replica() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), REQUIRED).await, Service::start_on(database, REQUIRED).await];
    let operator = services[0].client().with("x-api-key", "admin");
    let expires_at = services[0].clock.now().as_ms() + DAY_MS;
    let made = make(&operator, json!({ "label": "l", "expiresAt": expires_at })).await;
    for service in &services {
        wait_until(async || is_live(&service.client(), &made).await).await;
    }
    end(&services[0].pool, "expires_at", &made).await;
    for service in &services {
        wait_until(async || !is_live(&service.client(), &made).await).await;
    }
    let path = format!("{KEYS}/{}", prefix(&made));
    assert_eq!(operator.get(KEYS).await.json()["total"], 0);
    assert_eq!(operator.send("DELETE", &path, None).await.status, 404);
    assert_eq!(operator.send("POST", &format!("{path}/rotate"), None).await.status, 404);
    services[0].janitor.run_once().await.expect("a run");
    assert_eq!(services[0].number("SELECT count(*) FROM api_keys").await, 0);
    services[0].verify().await;
}

#[tokio::test]
async fn a_key_that_expires_within_the_second_of_the_cache_is_not_used_longer() {
    let service = Service::start(REQUIRED).await;
    let operator = service.client().with("x-api-key", "admin");
    let made = make(&operator, json!({ "label": "l", "expiresAt": service.clock.now().as_ms() + DAY_MS })).await;
    let soon = format!("UPDATE api_keys SET expires_at = now() + interval '300 ms' WHERE prefix = '{}'", prefix(&made));
    sqlx::query(AssertSqlSafe(soon)).execute(&service.pool).await.expect("SQL");
    let is_over = "SELECT count(*) FROM api_keys WHERE expires_at <= now()";
    loop {
        // Asked before: what was accepted after the database says that it is over was accepted too late.
        let was_over = service.number(is_over).await == 1;
        let is_live = is_live(&service.client(), &made).await;
        assert!(!(was_over && is_live), "an expired key was recognised");
        if was_over {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_the_database_decides_when_a_key_expires() {
    for offset in ["+25h", "-25h"] {
        let Some(clock) = foreign_clock(offset) else { return };
        let database = new_database().await;
        let (pool, address) = (pool(&database), url(&database));
        let environment = [&[("DATABASE_URL", address.as_str())], &clock[..], REQUIRED].concat();
        let process = Process::start_with(&environment, 0);
        let operator = process.client().with("x-api-key", "admin");
        let now_ms: i64 = sqlx::query_scalar("SELECT (extract(epoch FROM now()) * 1000)::bigint")
            .fetch_one(&pool)
            .await
            .expect("the time");
        let hour = 3_600_000;
        let made = make(&operator, json!({ "label": "l", "expiresAt": now_ms + hour })).await;
        assert!(is_live(&process.client(), &made).await, "{offset}");
        let past = operator.post(KEYS, &json!({ "label": "l", "expiresAt": now_ms - hour })).await;
        assert_eq!(past.status, 400, "{offset}: {past:?}");
        let rotated = rotate(&operator, prefix(&made), json!({ "overlapSeconds": 60 })).await;
        let until = rotated["previous"]["expiresAt"].as_i64().expect("a moment");
        assert!((now_ms + 60_000..now_ms + 60_000 + hour).contains(&until), "{offset}: {rotated}");
        assert!(is_live(&process.client(), &made).await && is_live(&process.client(), &rotated).await, "{offset}");
        end(&pool, "overlap_until", &made).await;
        wait_until(async || !is_live(&process.client(), &made).await).await;
        assert!(is_live(&process.client(), &rotated).await, "{offset}");
    }
}

#[tokio::test]
async fn a_rotated_key_and_its_successor_are_both_valid_until_the_overlap_ends() {
    let service = Service::start(REQUIRED).await;
    let operator = service.client().with("x-api-key", "admin");
    let body = json!({ "label": "billing", "scopes": ["usage:write"], "rateLimitPerWindow": 9 });
    let old = make(&operator, body).await;
    let new = rotate(&operator, prefix(&old), json!({})).await;
    let expected = json!({
        "key": new["key"],
        "label": "billing",
        "tenantId": old["tenantId"],
        "scopes": ["usage:write"],
        "rateLimitPerWindow": 9,
        "previous": { "prefix": prefix(&old), "expiresAt": new["previous"]["expiresAt"] },
    });
    assert_eq!(new.to_string(), expected.to_string());
    let until = new["previous"]["expiresAt"].as_i64().expect("a moment");
    assert!((until - DAY_MS - service.clock.now().as_ms()).abs() < 60_000, "a day without another wish");
    assert!(is_live(&service.client(), &old).await && is_live(&service.client(), &new).await);
    let items = operator.get(KEYS).await.json()["items"].clone();
    assert_eq!((&items[0]["rotated"], &items[0]["expiresAt"]), (&json!(true), &json!(until)));
    assert_eq!((items[1].get("rotated"), items[1].get("expiresAt")), (None, None));
    // Once: who lost the answer revokes the new key.
    let again = operator.post(&format!("{KEYS}/{}/rotate", prefix(&old)), &json!({})).await;
    let message = format!("api key {} was already rotated", prefix(&old));
    assert_eq!(again.error(), (409, "already_rotated".to_owned(), message));
    // Without an overlap the old key ends at once, on this replica.
    let newest = rotate(&operator, prefix(&new), json!({ "overlapSeconds": 0 })).await;
    assert!(!is_live(&service.client(), &new).await && is_live(&service.client(), &newest).await);
    end(&service.pool, "overlap_until", &old).await;
    wait_until(async || !is_live(&service.client(), &old).await).await;
    assert_eq!(operator.get(KEYS).await.json()["total"], 1);
    service.janitor.run_once().await.expect("a run");
    service.verify().await;
}

#[tokio::test]
async fn a_new_key_lives_as_long_as_the_old_one_was_to_live() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let now = service.clock.now().as_ms();
    let old = make(&client, json!({ "label": "l", "expiresAt": now + 10 * DAY_MS })).await;
    service.clock.advance_ms(9 * DAY_MS);
    let new = rotate(&client, prefix(&old), json!({ "overlapSeconds": 2_592_000 })).await;
    // The overlap does not outlive the old key.
    assert_eq!(new["previous"]["expiresAt"], now + 10 * DAY_MS);
    let expires_at = new["expiresAt"].as_i64().expect("a moment");
    assert!((expires_at - now - 19 * DAY_MS).abs() < 60_000, "{new}");
    // The end of the year 9999. A new key of the same lifetime would end later.
    let last = make(&client, json!({ "label": "l", "expiresAt": 253_402_300_799_999_i64 })).await;
    let path = format!("{KEYS}/{}/rotate", prefix(&last));
    let refused = client.send("POST", &path, None).await;
    let message = "expiresAt is required: with the lifetime of the old key the new one would end after the year 9999";
    assert_eq!(refused.error(), (400, "invalid_request".to_owned(), message.to_owned()));
    rotate(&client, prefix(&last), json!({ "expiresAt": 253_402_300_799_999_i64 })).await;
    let chosen = now + 100 * DAY_MS;
    let newest = rotate(&client, prefix(&new), json!({ "expiresAt": chosen })).await;
    assert_eq!(newest["expiresAt"], chosen);
    for (path, body, status, message) in [
        ("apk-1", "[]", 400, "prefix must be 1-64 alphanumeric/underscore characters"),
        ("apk_00000000", "[]", 400, "body must be a JSON object"),
        ("apk_00000000", r#"{"overlap":1}"#, 400, "unexpected field: overlap"),
        ("apk_00000000", r#"{"overlapSeconds":-1}"#, 400, "overlapSeconds must be an integer between 0 and 2592000"),
        (
            "apk_00000000",
            r#"{"overlapSeconds":2592001}"#,
            400,
            "overlapSeconds must be an integer between 0 and 2592000",
        ),
        (
            "apk_00000000",
            r#"{"expiresAt":1}"#,
            400,
            "expiresAt must be a time in the future, in milliseconds since the Unix epoch",
        ),
        ("apk_00000000", "{}", 404, "no api key with prefix apk_00000000"),
    ] {
        let answer = client.send("POST", &format!("{KEYS}/{path}/rotate"), Some(body)).await;
        assert_eq!((answer.status, answer.error().2), (status, message.to_owned()), "{path} {body}");
    }
}

#[tokio::test]
async fn of_concurrent_rotations_of_one_key_exactly_one_succeeds() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    let old = make(&services[0].client(), json!({ "label": "l" })).await;
    let path = format!("{KEYS}/{}/rotate", prefix(&old));
    let sent: Vec<_> = (0..16)
        .map(|number| {
            let (client, path) = (services[number % 2].client(), path.clone());
            tokio::spawn(async move { client.post(&path, &json!({})).await })
        })
        .collect();
    let mut statuses = Vec::new();
    for answer in sent {
        statuses.push(answer.await.expect("a task").status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![201], vec![409; 15]].concat());
    assert_eq!(services[0].number("SELECT count(*) FROM api_keys").await, 2);
    assert_eq!(services[0].number("SELECT count(*) FROM audit_log WHERE operation = 'api_key.rotated'").await, 1);
    services[0].verify().await;
}

#[tokio::test]
async fn a_limit_of_a_key_counts_beside_that_of_its_tenant() {
    let service = Service::start(&[("RATE_LIMIT", "on"), ("ADMIN_API_KEY", "admin")]).await;
    let operator = service.client().with("x-api-key", "admin");
    operator.send("PATCH", "/api/v1/config", Some(r#"{"rateLimitPerWindow":5}"#)).await;
    let limited = make(&operator, json!({ "label": "l", "rateLimitPerWindow": 2 })).await;
    let free = make(&operator, json!({ "label": "l", "tenantId": limited["tenantId"] })).await;
    let [limited, free] = [&limited, &free].map(|made| service.client().with("x-api-key", text(&made["key"])));
    let get = async |client: &Client| {
        let answer = client.get(SERVICES).await;
        (answer.status, answer.header("ratelimit-limit"), answer.header("ratelimit-remaining"))
    };
    let shown = |status, limit: &str, remaining: &str| (status, limit.to_owned(), remaining.to_owned());
    assert_eq!(get(&limited).await, shown(200, "2", "1"));
    assert_eq!(get(&limited).await, shown(200, "2", "0"));
    assert_eq!(get(&limited).await, shown(429, "2", "0"));
    let refused = limited.get(SERVICES).await;
    assert_eq!(refused.error().2, "more than 2 requests per 60s");
    assert!(!refused.header("retry-after").is_empty());
    // What the key's limit refused did not count for the tenant.
    assert_eq!(get(&free).await, shown(200, "5", "2"));
    service.clock.advance_ms(60_000);
    for remaining in ["4", "3", "2", "1", "0"] {
        assert_eq!(get(&free).await, shown(200, "5", remaining));
    }
    // What the tenant's limit refuses does not count for the key.
    assert_eq!(get(&limited).await, shown(429, "5", "0"));
    operator.send("PATCH", "/api/v1/config", Some(r#"{"rateLimitPerWindow":9}"#)).await;
    assert_eq!(get(&limited).await, shown(200, "2", "1"));
}

#[tokio::test]
async fn the_last_use_is_written_at_most_once_a_minute() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    let operator = services[0].client();
    let made = make(&operator, json!({ "label": "l" })).await;
    let used = async || operator.get(KEYS).await.json()["items"][0]["lastUsedAt"].as_i64();
    assert_eq!(used().await, None);
    let get = async |service: &Service| {
        let answer = service.client().with("x-api-key", text(&made["key"])).get(SERVICES).await;
        assert_eq!(answer.status, 200);
    };
    get(&services[0]).await;
    wait_until(async || used().await.is_some()).await;
    let first = used().await.expect("a moment");
    assert!((first - services[0].clock.now().as_ms()).abs() < 60_000);
    // Each of these changes makes the replicas look the key up again.
    for _ in 0..5 {
        make(&operator, json!({ "label": "other" })).await;
        for service in &services {
            get(service).await;
        }
    }
    let age = "UPDATE api_keys SET last_used_at = last_used_at - interval '61 seconds' WHERE last_used_at IS NOT NULL";
    assert_eq!(used().await, Some(first));
    sqlx::query(age).execute(&services[0].pool).await.expect("SQL");
    wait_until(async || {
        get(&services[1]).await;
        used().await > Some(first)
    })
    .await;
}
