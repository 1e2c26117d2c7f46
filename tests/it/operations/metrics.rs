//! HTTP contract, section 17.2: metrics. In processes of their own: the figures are the process's.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use serde_json::json;

use crate::support::{Client, Process, new_database, pool, store_records, usage, wait_until};

const PATH: &str = "/api/v1/metrics";

/// Every sample, by its name and labels as written.
async fn scrape(client: &Client) -> BTreeMap<String, String> {
    let answer = client.get(PATH).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let samples = answer.text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a sample")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_names_are_there_once_with_their_kinds() {
    let database = new_database().await;
    let process = Process::start_on(&database, &[]);
    let answer = process.client().get(PATH).await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(answer.text.ends_with('\n') && !answer.text.contains("\n\n"));
    let kinds: BTreeMap<&str, &str> =
        answer.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let helped = answer.text.lines().filter(|line| line.starts_with("# HELP ")).count();
    let expected: BTreeMap<&str, &str> = [
        ("services_total", "gauge"),
        ("api_keys_total", "gauge"),
        ("webhooks_total", "gauge"),
        ("usage_keys_total", "gauge"),
        ("usage_requests_total", "gauge"),
        ("paused", "gauge"),
        ("requests_recorded_total", "counter"),
        ("settled_stroops_total", "counter"),
        ("settlements_total", "counter"),
        ("http_requests_total", "counter"),
        ("http_request_duration_seconds", "histogram"),
        ("http_errors_total", "counter"),
        ("unreadable_forwarded_total", "counter"),
        ("http_connections", "gauge"),
        ("http_held_bytes", "gauge"),
        ("idempotency_replays_total", "counter"),
        ("idempotency_conflicts_total", "counter"),
        ("idempotency_waits_total", "counter"),
        ("idempotency_waiting", "gauge"),
        ("idempotency_keys", "gauge"),
        ("idempotency_expired_total", "counter"),
        ("idempotency_evictions_total", "counter"),
        ("unpriced_settlements_total", "counter"),
        ("commit_batch_size", "histogram"),
        ("commit_duration_seconds", "histogram"),
        ("commit_queue_depth", "gauge"),
        ("commit_queue_capacity", "gauge"),
        ("commit_oldest_wait_seconds", "gauge"),
        ("commit_retries_total", "counter"),
        ("janitor_lag_seconds", "gauge"),
        ("db_connections", "gauge"),
        ("db_connections_max", "gauge"),
        ("database_size_bytes", "gauge"),
        ("verify_last_success_timestamp_seconds", "gauge"),
        ("verify_duration_seconds", "gauge"),
        ("verify_findings", "gauge"),
        ("verify_cancelled_steps", "gauge"),
        ("webhook_deliveries_total", "counter"),
        ("local_postgres_restarts_total", "counter"),
        ("log_lines_dropped_total", "counter"),
        ("trace_spans_total", "counter"),
        ("webhook_backlog", "gauge"),
        ("webhook_oldest_due_seconds", "gauge"),
        ("job_last_success_timestamp_seconds", "gauge"),
        ("job_failures_total", "counter"),
        ("clock_offset_seconds", "gauge"),
        ("idempotency_full_callers", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
        ("process_virtual_memory_bytes", "gauge"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_start_time_seconds", "gauge"),
        ("process_threads", "gauge"),
    ]
    .into();
    let found: BTreeMap<&str, &str> =
        kinds.iter().map(|(name, kind)| (name.strip_prefix("agentpay_").unwrap_or(name), *kind)).collect();
    assert_eq!((found, helped), (expected.clone(), expected.len()));
    let types = answer.text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(types, expected.len());
    let strict = process.client().get("/api/v1/metrics?x=1").await.error();
    assert_eq!(strict.2, "unexpected query parameter: x");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_of_the_process_are_its_own() {
    let database = new_database().await;
    let process = Process::start_on(&database, &[]);
    let samples = scrape(&process.client()).await;
    let figure = |name: &str| -> f64 { samples[&format!("process_{name}")].parse().expect("a number") };
    let age = UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64() - figure("start_time_seconds");
    // The start of the machine is known in whole seconds.
    assert!((-2.0..600.0).contains(&age), "{age}");
    assert!((0.0..600.0).contains(&figure("cpu_seconds_total")));
    assert!((3.0..figure("max_fds")).contains(&figure("open_fds")));
    assert!((1e6..figure("virtual_memory_bytes")).contains(&figure("resident_memory_bytes")));
    assert!(figure("threads") >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_commits_and_replays_are_counted() {
    let database = new_database().await;
    let process = Process::start_on(&database, &[("COMMIT_LANES", "1")]);
    let client = process.client();
    assert!(
        !scrape(&client)
            .await
            .contains_key(r#"agentpay_http_requests_total{method="GET",route="/api/v1/metrics",status="200"}"#)
    );
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 9_007_199_254_i64 })).await;
    for _ in 0..3 {
        client.key("k").post("/api/v1/usage", &usage("a", "s", 1_000_000)).await;
    }
    assert_eq!(client.key("k").post("/api/v1/usage", &usage("a", "s", 2)).await.status, 409);
    client.post("/api/v1/usage", &usage("a", "s", 1_000_000)).await;
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    client.post("/api/v1/usage", &usage("b", "s", 5)).await;
    client.send("HEAD", "/api/v1/services/s", None).await;
    client.send("POST", "/api/v1/usage", Some("{")).await;
    client.with("content-encoding", "zip").send("POST", "/api/v1/usage", Some("{}")).await;
    client.with("content-encoding", "gzip").send("POST", "/api/v1/usage", Some("{}")).await;
    client.with("content-type", "application/json;charset=latin1").send("POST", "/api/v1/usage", Some("{}")).await;
    client.send("POST", "/api/v1/usage", Some(&" ".repeat(102_401))).await;
    client.get("/api/v1/usage/%zz/s").await;
    client.get("/nothing").await;
    client.send("BREW", "/nothing", None).await;
    client.get("/api/v1/config?x=1").await;
    let samples = scrape(&client).await;
    for (name, value) in [
        ("services_total", "1"),
        ("api_keys_total", "0"),
        ("usage_keys_total", "2"),
        ("usage_requests_total", "5"),
        ("requests_recorded_total", "2000005"),
        ("settled_stroops_total", "18014398508000000"),
        ("settlements_total", "1"),
        ("paused", "0"),
        ("idempotency_keys", "1"),
        ("idempotency_replays_total", "2"),
        ("idempotency_conflicts_total", "1"),
        ("idempotency_waiting", "0"),
        ("commit_queue_depth", "0"),
        ("commit_queue_capacity", "10000"),
        ("commit_oldest_wait_seconds", "0"),
        ("db_connections_max", "16"),
        ("verify_last_success_timestamp_seconds", "0"),
        ("webhook_oldest_due_seconds", "0"),
        ("janitor_lag_seconds", "0"),
        ("webhook_backlog", "0"),
        ("commit_batch_size_bucket{le=\"1\"}", "5"),
        ("commit_batch_size_bucket{le=\"1000\"}", "5"),
        ("commit_batch_size_bucket{le=\"+Inf\"}", "5"),
        ("commit_batch_size_sum", "5"),
        ("commit_duration_seconds_count", "5"),
        ("commit_duration_seconds_bucket{le=\"+Inf\"}", "5"),
        ("commit_retries_total{reason=\"key_taken\"}", "0"),
        ("http_requests_total{method=\"POST\",route=\"/api/v1/usage\",status=\"201\"}", "5"),
        ("http_requests_total{method=\"POST\",route=\"/api/v1/usage\",status=\"409\"}", "1"),
        ("http_requests_total{method=\"HEAD\",route=\"/api/v1/services/:serviceId\",status=\"200\"}", "1"),
        ("http_requests_total{method=\"POST\",route=\"unmatched\",status=\"400\"}", "2"),
        ("http_requests_total{method=\"POST\",route=\"unmatched\",status=\"415\"}", "2"),
        ("http_requests_total{method=\"POST\",route=\"unmatched\",status=\"413\"}", "1"),
        ("http_requests_total{method=\"GET\",route=\"unmatched\",status=\"404\"}", "1"),
        ("http_requests_total{method=\"GET\",route=\"unmatched\",status=\"400\"}", "2"),
        ("http_requests_total{method=\"OTHER\",route=\"unmatched\",status=\"404\"}", "1"),
        ("http_requests_total{method=\"GET\",route=\"/api/v1/metrics\",status=\"200\"}", "1"),
        ("http_request_duration_seconds_count{method=\"POST\",route=\"/api/v1/usage\",status=\"201\"}", "5"),
        ("http_request_duration_seconds_bucket{method=\"POST\",route=\"/api/v1/usage\",status=\"201\",le=\"10\"}", "5"),
        (
            "http_request_duration_seconds_bucket{method=\"POST\",route=\"/api/v1/usage\",status=\"201\",le=\"+Inf\"}",
            "5",
        ),
        ("http_errors_total{type=\"entity.parse.failed\"}", "1"),
        ("http_errors_total{type=\"entity.too.large\"}", "1"),
        ("http_errors_total{type=\"entity.corrupt\"}", "1"),
        ("http_errors_total{type=\"encoding.unsupported\"}", "1"),
        ("http_errors_total{type=\"charset.unsupported\"}", "1"),
        ("http_errors_total{type=\"uri.invalid\"}", "1"),
        ("http_errors_total{type=\"internal\"}", "0"),
    ] {
        assert_eq!(samples.get(&format!("agentpay_{name}")).map(String::as_str), Some(value), "{name}");
    }
    let buckets = |family: &str| samples.keys().filter(|name| name.starts_with(family)).count();
    assert_eq!(buckets("agentpay_commit_duration_seconds_bucket"), 15);
    assert_eq!(buckets("agentpay_commit_batch_size_bucket"), 11);
    assert_eq!(buckets(r#"agentpay_http_request_duration_seconds_bucket{method="HEAD""#), 12);
    for (name, value) in samples.iter().filter(|(name, _)| name.contains("_sum")) {
        let decimals = value.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        assert!(decimals <= 6 && !value.contains('e'), "{name} {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_the_janitor_and_the_waits_for_requests_with_the_same_key_are_counted() {
    let database = new_database().await;
    let settings =
        [("JANITOR_INTERVAL_MS", "10"), ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "2"), ("ALLOW_ADMIN_RESET", "true")];
    let process = Process::start_on(&database, &settings);
    let client = process.client();
    let pool = pool(&database);
    store_records(&pool, "ip:127.0.0.1", 5, 7_200_000, 10).await;
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let client = client.key("k");
            tokio::spawn(async move { client.post("/api/v1/usage", &usage("a", "s", 1)).await.status })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.expect("a client"), 201);
    }
    let figure = async |name: &str| -> u64 {
        scrape(&client).await.get(&format!("agentpay_{name}")).map_or(0, |value| value.parse().expect("a number"))
    };
    wait_until(async || figure("idempotency_evictions_total{cap=\"caller\"}").await >= 3).await;
    let expire = "UPDATE idempotency_keys SET expires_at = now()";
    sqlx::query(expire).execute(&pool).await.expect("expired records");
    wait_until(async || figure("idempotency_expired_total").await >= 1).await;
    wait_until(async || figure("idempotency_keys").await == 0).await;
    assert_eq!(figure("idempotency_replays_total").await, 19);
    assert!(figure("idempotency_waits_total{outcome=\"replayed\"}").await <= 19);
    wait_until(async || figure("idempotency_waiting").await == 0).await;

    assert_eq!(client.send("POST", "/api/v1/admin/reset", None).await.status, 200);
    assert_eq!(figure("idempotency_replays_total").await, 0);
    assert_eq!(figure("idempotency_expired_total").await, 0);
    let posts = r#"http_requests_total{method="POST",route="/api/v1/usage",status="201"}"#;
    assert_eq!(figure(posts).await, 0);
}
