//! HTTP contract, section 19.3: what the log says.

use serde_json::{Value, json};

use crate::support::{Client, Logged, free_port, new_database, url, wait_until};

/// The lines, each with its event's fields beside its level and target.
fn lines(log: &str) -> Vec<Value> {
    let read = |line: &str| -> Value {
        let mut told: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("JSON: {line}"));
        let fields = told["fields"].take();
        for (name, value) in fields.as_object().expect("fields") {
            told[name] = value.clone();
        }
        told
    };
    log.lines().map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_logged_as_json_lines() {
    let database = url(&new_database().await);
    let port = free_port();
    let text = port.to_string();
    let mut service = Logged::start(&[("DATABASE_URL", &database), ("PORT", &text), ("SHUTDOWN_GRACE_MS", "0")]);
    service.says("server started").await;
    let client = Client::new(([127, 0, 0, 1], port).into()).with("x-request-id", "r-1");
    client.get("/api/v1/nothing?secret=no").await;
    service.terminate();
    assert!(service.exit().await.success());
    let lines = lines(&service.text());
    let find = |message: &str| lines.iter().find(|line| line["message"] == message).expect(message);
    let started = find("server started");
    assert_eq!(
        (&started["level"], &started["host"], &started["port"]),
        (&json!("INFO"), &json!("127.0.0.1"), &json!(port))
    );
    let completed = find("request completed");
    let fields = ["level", "requestId", "method", "path", "status"].map(|name| completed[name].clone());
    assert_eq!(fields, [json!("INFO"), json!("r-1"), json!("GET"), json!("/api/v1/nothing"), json!(404)]);
    let ms = completed["durationMs"].as_f64().expect("a number");
    assert!((ms * 10.0 - (ms * 10.0).round()).abs() < 1e-6, "{ms}");
    assert!(completed["timestamp"].as_str().is_some_and(|moment| moment.ends_with('Z')), "{completed}");
    assert!(completed["target"].is_string() && completed.get("span").is_none(), "{completed}");
    let signal = find("shutdown signal received");
    assert_eq!((&signal["level"], &signal["signal"]), (&json!("INFO"), &json!("SIGTERM")));
}

/// Those of the service. It listens before it connects, and to try its port until then could take that very port from it.
async fn connections(pool: &sqlx::PgPool) -> i64 {
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                       AND application_name = 'agentpay-billing'";
    sqlx::query_scalar(connections).fetch_one(pool).await.expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_service_says_nothing_and_a_quiet_one_only_what_is_wrong() {
    let options = new_database().await;
    let database = url(&options);
    let pool = sqlx::PgPool::connect_with(options).await.expect("connect");
    for level in ["silent", "fatal", "error", "warn"] {
        let port = free_port();
        let text = port.to_string();
        let environment = [
            ("DATABASE_URL", database.as_str()),
            ("PORT", &text),
            ("LOG_LEVEL", level),
            ("ALLOW_ADMIN_RESET", "perhaps"),
        ];
        let mut service = Logged::start(&environment);
        let client = Client::new(([127, 0, 0, 1], port).into());
        wait_until(async || connections(&pool).await > 0).await;
        assert_eq!(client.get("/health").await.status, 200);
        service.terminate();
        let exit = service.exit().await;
        assert!(exit.success(), "{level}: {exit}: {}", service.text());
        wait_until(async || connections(&pool).await == 0).await;
        let text = service.text();
        // A busy machine may give it more to warn of, so not every line is ours to expect.
        assert!(!text.contains("INFO") && (level != "silent" || text.is_empty()), "{level}: {text}");
        assert_eq!(text.contains("ALLOW_ADMIN_RESET"), level == "warn", "{level}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_evicted_before_they_expire_are_warned_of() {
    let (by_caller, by_total) = ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "IDEMPOTENCY_CACHE_MAX_ENTRIES");
    for cap in [by_caller, by_total] {
        let options = new_database().await;
        // Old enough to be evicted.
        let records = "WITH old AS (
                 INSERT INTO idempotency_keys
                 SELECT 'ip:192.0.2.1', 'k' || number, 'POST', '/', sha256(''), 201, '{}', 'r', 1, now() - interval '2 hours',
                        now() + interval '1 hour'
                 FROM generate_series(1, 3) AS number
                 RETURNING caller, idempotency_record_bytes(caller, key, path, request_id, response) AS bytes
             )
             INSERT INTO caller_totals (caller, shard, records, bytes)
             SELECT caller, 0, count(*), sum(bytes) FROM old GROUP BY caller";
        let pool = sqlx::PgPool::connect_with(options.clone()).await.expect("connect");
        sqlx::query(records).execute(&pool).await.expect("records");
        pool.close().await;
        let (database, text) = (url(&options), free_port().to_string());
        let environment = [("DATABASE_URL", database.as_str()), ("PORT", &text), ("JANITOR_INTERVAL_MS", "10")];
        let mut service = Logged::start(&[&environment[..], &[(cap, "2")]].concat());
        service.says("live idempotency records evicted").await;
        service.terminate();
        assert!(service.exit().await.success());
        let lines = lines(&service.text());
        let find = |message: &str| lines.iter().find(|line| line["message"] == message).expect(message);
        let pruned = find("the janitor pruned");
        assert_eq!((&pruned["level"], &pruned["expired"], &pruned["evicted"]), (&json!("INFO"), &json!(0), &json!(1)));
        assert!(pruned["span"]["run"].is_number() && pruned["span"]["job"] == "janitor", "{pruned}");
        let evicted = find("live idempotency records evicted");
        assert_eq!((&evicted["level"], &evicted["cap"], &evicted["count"]), (&json!("WARN"), &json!(2), &json!(1)));
    }
}

/// At the level `warn`, where nothing but what goes wrong is logged.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_tied_to_its_request_and_to_its_batch() {
    let options = new_database().await;
    let (database, port) = (url(&options), free_port());
    let text = port.to_string();
    let environment = [("DATABASE_URL", database.as_str()), ("PORT", &text), ("LOG_LEVEL", "warn")];
    let mut service = Logged::start(&environment);
    let client = |request_id| Client::new(([127, 0, 0, 1], port).into()).with("x-request-id", request_id);
    let pool = sqlx::PgPool::connect_with(options).await.expect("connect");
    wait_until(async || connections(&pool).await > 0).await;
    wait_until(async || client("r-0").get("/api/v1/services/s-1").await.status == 404).await;
    sqlx::query("ALTER TABLE services RENAME TO moved").execute(&pool).await.expect("a statement");
    pool.close().await;
    let usage = json!({"agent": "a-1", "serviceId": "s-1", "requests": 1});
    assert_eq!(client("r-1").get("/api/v1/services/s-1").await.status, 500);
    assert_eq!(client("r-2").post("/api/v1/usage", &usage).await.status, 500);
    service.terminate();
    assert!(service.exit().await.success());
    let lines = lines(&service.text());
    let find = |message: &str, request_id: &str| {
        let of_request = |span: &Value| span["requestId"] == request_id || span["requestIds"] == request_id;
        let found = lines.iter().find(|line| line["message"] == message && of_request(&line["span"]));
        found.unwrap_or_else(|| panic!("{message}, {request_id}: {}", service.text()))["span"].clone()
    };
    let read = json!({
        "name": "request",
        "requestId": "r-1",
        "route": "/api/v1/services/:serviceId",
        "tenant": "public"
    });
    for message in ["a read failed", "request failed"] {
        assert_eq!(find(message, "r-1"), read);
    }
    assert_eq!(find("request failed", "r-2")["route"], "/api/v1/usage");
    let batch = find("a request could not be executed", "r-2");
    assert_eq!((&batch["name"], &batch["requests"]), (&json!("batch"), &json!(1)), "{batch}");
    assert!(["lane", "batch", "attempt"].iter().all(|name| batch[name].is_number()), "{batch}");
    assert_eq!(find("a job failed", "r-2"), batch);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_stays_in_one_line_of_the_log() {
    let database = url(&new_database().await);
    for format in ["json", "pretty"] {
        let port = free_port();
        let text = port.to_string();
        let environment = [("DATABASE_URL", database.as_str()), ("PORT", &text), ("LOG_FORMAT", format)];
        let mut service = Logged::start(&[&environment[..], &[("LOG_LEVEL", "debug")]].concat());
        service.says("server started").await;
        let client = Client::new(([127, 0, 0, 1], port).into());
        // A line break, an escape of a terminal, and U+2028, in a path and in what is stored and logged.
        for path in ["/api/v1/x%0Aforged%20%1B%5B31m", "/api/v1/usage/a%0Dforged/s", "/x%E2%80%A8forged%85"] {
            client.get(path).await;
        }
        client.post("/api/v1/usage", &json!({ "agent": "a\nforged\u{1b}", "serviceId": "s" })).await;
        service.terminate();
        assert!(service.exit().await.success());
        let log = service.text();
        // Lines for people have colours.
        let is_allowed = |character: char| character == '\n' || format == "pretty" && character == '\u{1b}';
        let is_plain = |character: char| !character.is_control() && character != '\u{2028}';
        assert!(log.chars().all(|character| is_plain(character) || is_allowed(character)), "{log:?}");
        for line in log.lines() {
            let is_whole = if format == "pretty" { line.contains("agentpay_billing::") } else { line.ends_with('}') };
            assert!(is_whole && !line.contains("\u{1b}[31m"), "{line}");
        }
        assert_eq!(log.lines().filter(|line| line.contains("request completed")).count(), 4, "{log}");
    }
}
