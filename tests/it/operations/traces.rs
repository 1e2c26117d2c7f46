//! Traces: what a collector receives, and what becomes of requests when there is none. In processes of their own, which
//! record traces or do not.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use crate::support::{
    Behaviour, Client, Collector, Logged, Process, Receiver, SilentServer, Span, free_port, new_database, url, usage,
    wait_until,
};

const USAGE: &str = "/api/v1/usage";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const RECORDED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const NOT_RECORDED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// Exports soon, and delivers to this machine.
const SOON: &[(&str, &str)] = &[("OTEL_BSP_SCHEDULE_DELAY", "20"), ("WEBHOOK_ALLOW_PRIVATE", "true")];

async fn start(collector: &Collector, more: &[(&str, &str)]) -> Process {
    let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str())];
    Process::start_on(&new_database().await, &[&endpoint, more].concat())
}

async fn make_webhook(client: &Client, receiver: &Receiver) -> String {
    let made = client.post("/api/v1/webhooks", &json!({ "url": receiver.url, "events": ["*"] })).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_owned()
}

fn is_of_request(span: &Span, request_id: &str) -> bool {
    span.attribute("agentpay.request_id") == request_id
}

/// The parts of a header `traceparent`.
fn parts(traceparent: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = traceparent.split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{traceparent}");
    (parts[1], parts[2], parts[3])
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_is_followed_to_its_batch_and_its_webhook() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-token");
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    let process = start(&collector, &[SOON, &[headers, attributes]].concat()).await;
    let webhook_id = make_webhook(&process.client(), &receiver).await;
    let caller =
        process.client().with("traceparent", RECORDED).with("tracestate", "vendor=1").with("x-request-id", "r-1");
    assert_eq!(caller.post(USAGE, &usage("agent-1", "svc-1", 5)).await.status, 201);

    let request = collector.find("the request", |span| is_of_request(span, "r-1")).await;
    assert_eq!((request.name.as_str(), request.kind), ("POST /api/v1/usage", SpanKind::Server));
    assert_eq!((request.trace_id.as_str(), request.parent_id.as_str()), (TRACE_ID, "00f067aa0ba902b7"));
    assert_eq!((request.tracestate.as_str(), request.is_error), ("vendor=1", false));
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!(USAGE)),
        ("http.response.status_code", json!(201)),
        ("url.path", json!(USAGE)),
        ("url.scheme", json!("http")),
        ("agentpay.tenant", json!("public")),
    ] {
        assert_eq!(request.attribute(name), value, "{name}");
    }
    assert_eq!(request.authorization, "Bearer collector-token");
    assert_eq!(request.resource["service.name"], "agentpay-billing");
    assert_eq!(request.resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(request.resource["deployment.environment.name"], "test");

    let batch = collector.find("the batch", |span| span.links.contains(&request.id())).await;
    assert_eq!((batch.name.as_str(), batch.kind), ("commit batch", SpanKind::Internal));
    assert_ne!(batch.trace_id, request.trace_id);
    assert_eq!(request.links, [batch.id()]);
    assert_eq!((batch.attribute("agentpay.requests"), batch.attribute("agentpay.attempt")), (json!(1), json!(1)));
    assert!((1..request.duration_ns).contains(&batch.duration_ns), "{batch:?}");

    let received = receiver.reach(1).await.remove(0);
    let is_delivery = |span: &Span| span.kind == SpanKind::Client && span.trace_id == TRACE_ID;
    let delivery = collector.find("the delivery", is_delivery).await;
    assert_eq!((delivery.name.as_str(), delivery.parent_id.as_str()), ("POST", request.span_id.as_str()));
    assert_eq!(parts(received.header("traceparent")), (TRACE_ID, delivery.span_id.as_str(), "01"));
    assert_eq!(received.header("tracestate"), "vendor=1");
    assert_eq!(delivery.attribute("agentpay.webhook_id"), json!(webhook_id));
    assert_eq!(delivery.attribute("agentpay.delivery_id"), received.header("webhook-id"));
    assert_eq!(delivery.attribute("agentpay.event_type"), "usage.recorded");
    assert_eq!((delivery.attribute("server.address"), delivery.is_error), (json!("127.0.0.1"), false));
    assert_eq!(delivery.attribute("http.response.status_code"), json!(200));
    // Nothing of the URL but its host: its path may be a secret.
    assert!(!format!("{:?}", collector.spans()).contains("/hook"));

    let is_run = |span: &Span| span.attribute("agentpay.job") == "webhooks";
    let run = collector.find("the run that delivered it", is_run).await;
    assert_eq!((run.name.as_str(), run.kind, run.parent_id.as_str()), ("webhooks", SpanKind::Internal, ""));
    assert!(run.attribute("agentpay.run").is_number() && !run.is_error, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_job_has_a_trace_if_it_did_something_or_failed() {
    let collector = Collector::start().await;
    let database = new_database().await;
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str());
    let often =
        [("JANITOR_INTERVAL_MS", "20"), ("IDEMPOTENCY_CACHE_TTL_MS", "1000"), ("VERIFY_INTERVAL_MS", "3600000")];
    let process = Process::start_on(&database, &[SOON, &often, &[endpoint]].concat());
    let client = process.client();
    let runs = || collector.spans().into_iter().filter(|span| !span.attribute("agentpay.job").is_null());
    let find = async |job: &str, is_error: bool| {
        let is_run = |span: &Span| span.attribute("agentpay.job") == job && span.is_error == is_error;
        collector.find(job, is_run).await
    };
    // Dozens of runs found nothing to do.
    let last_run = async || client.get("/api/v1/health/deep").await.json()["checks"][3]["detail"]["lastRunAt"].as_i64();
    wait_until(async || last_run().await.is_some()).await;
    let first = last_run().await;
    wait_until(async || last_run().await > first.map(|ms| ms + 2000)).await;
    assert_eq!(runs().count(), 0, "{:#?}", runs().collect::<Vec<_>>());

    // As another replica does.
    let change = "UPDATE runtime_config SET bulk_max_items = 7";
    sqlx::query(change).execute(&crate::support::pool(&database)).await.expect(change);
    client.key("k").post(USAGE, &usage("agent-1", "svc-1", 1)).await;
    for job in ["config", "janitor"] {
        let run = find(job, false).await;
        assert!(run.attribute("agentpay.run").as_i64() > Some(1), "{run:?}");
    }
    assert_eq!(runs().count(), 2, "{:#?}", runs().collect::<Vec<_>>());

    let rename = "ALTER TABLE event_runs RENAME TO renamed_events; ALTER TABLE runtime_config RENAME TO renamed_config;
                  ALTER TABLE outbox RENAME TO renamed_outbox; ALTER TABLE totals RENAME TO renamed_totals";
    sqlx::raw_sql(rename).execute(&crate::support::pool(&database)).await.expect(rename);
    for job in ["config", "janitor", "webhooks"] {
        find(job, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_marked_and_retries_stay_in_the_trace() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    receiver.answer(&[Behaviour::Status(503)]);
    let process = start(&collector, SOON).await;
    let client = process.client();
    let webhook_id = make_webhook(&client, &receiver).await;
    let request_id = |id: &str| client.with("x-request-id", id);
    assert_eq!(request_id("r-404").get("/nothing/at/all").await.status, 404);
    let unmatched = collector.find("a request without route", |span| is_of_request(span, "r-404")).await;
    assert_eq!((unmatched.name.as_str(), unmatched.is_error), ("GET", false));
    assert_eq!(unmatched.attribute("http.route"), Value::Null);
    assert_eq!(request_id("r-brew").send("BREW", "/nothing", None).await.status, 404);
    let made_up = collector.find("a method that is none", |span| is_of_request(span, "r-brew")).await;
    assert_eq!((made_up.name.as_str(), made_up.attribute("http.request.method")), ("HTTP", json!("_OTHER")));

    // A test is attempted by its request.
    let tested = request_id("r-test").post(&format!("/api/v1/webhooks/{webhook_id}/test"), &json!({})).await;
    let request = collector.find("the request for a test", |span| is_of_request(span, "r-test")).await;
    let is_attempt = |span: &Span| span.kind == SpanKind::Client && span.parent_id == request.span_id;
    let attempt = collector.find("the attempt", is_attempt).await;
    assert!(attempt.is_error, "{tested:?}, {attempt:?}");
    assert_eq!((attempt.attribute("error.type"), &attempt.trace_id), (json!("503"), &request.trace_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_follows_the_caller_and_a_trace_that_is_not_recorded_is_passed_on() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    let sampler = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let name = ("OTEL_SERVICE_NAME", "billing-eu");
    let process = start(&collector, &[SOON, &sampler, &[name]].concat()).await;
    make_webhook(&process.client(), &receiver).await;
    let send = async |headers: &[(&str, &str)]| {
        let with = |client: Client, (name, value): &(&str, &str)| client.with(name, value);
        let client = headers.iter().fold(process.client(), with);
        assert_eq!(client.post(USAGE, &usage("agent-1", "svc-1", 1)).await.status, 201);
    };
    send(&[("x-request-id", "r-none")]).await;
    let first = receiver.reach(1).await.remove(0);
    assert_eq!(parts(first.header("traceparent")).2, "00");
    send(&[("x-request-id", "r-off"), ("traceparent", NOT_RECORDED)]).await;
    let second = receiver.reach(2).await.remove(1);
    let (trace_id, span_id, flags) = parts(second.header("traceparent"));
    assert_eq!((trace_id, flags), (TRACE_ID, "00"));
    assert_ne!(span_id, "00f067aa0ba902b7");
    send(&[("x-request-id", "r-on"), ("traceparent", RECORDED)]).await;
    let recorded = collector.find("the recorded one", |span| is_of_request(span, "r-on")).await;
    assert_eq!(recorded.resource["service.name"], "billing-eu");
    let batch = collector.find("its batch", |span| span.links.contains(&recorded.id())).await;
    assert_eq!(batch.parent_id, "");
    let is_delivery = |span: &Span| span.kind == SpanKind::Client && span.parent_id == recorded.span_id;
    collector.find("its delivery", is_delivery).await;
    // Nothing else was recorded, not even the runs of jobs.
    assert_eq!(collector.spans().len(), 3, "{:#?}", collector.spans());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_that_is_not_parent_based_decides_itself() {
    let collector = Collector::start().await;
    let sampler = [("OTEL_TRACES_SAMPLER", "always_on")];
    let process = start(&collector, &[SOON, &sampler].concat()).await;
    process.client().with("x-request-id", "r-1").with("traceparent", NOT_RECORDED).get("/api/v1/services").await;
    let request = collector.find("the request", |span| is_of_request(span, "r-1")).await;
    assert_eq!((request.trace_id.as_str(), request.parent_id.as_str()), (TRACE_ID, "00f067aa0ba902b7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_span_contains_a_key_a_secret_or_a_body() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    receiver.answer(&[Behaviour::Status(503)]);
    let admin = ("ADMIN_API_KEY", "secret-of-the-operator-0123456789");
    let process = start(&collector, &[SOON, &[admin]].concat()).await;
    let operator = process.client().with("x-api-key", admin.1);
    let key = operator.post("/api/v1/api-keys", &json!({ "label": "a" })).await.json()["key"].clone();
    let key = key.as_str().expect("a key");
    let client = process.client().with("x-api-key", key);
    let hook = json!({ "url": receiver.url.replace("/hook", "/secret-path?secret-query"), "events": ["*"] });
    let secret = client.post("/api/v1/webhooks", &hook).await.json()["secret"].clone();
    let secret = secret.as_str().expect("a secret");
    assert_eq!(client.key("secret-key").post(USAGE, &usage("agent-1", "svc-1", 5)).await.status, 201);
    assert_eq!(client.get("/api/v1/idempotency/secret-key").await.status, 200);
    assert_eq!(client.get("/api/v1/idempotency/secret-key?secret=query").await.status, 400);
    assert_eq!(client.send("POST", USAGE, Some("{\"agent\":\"secret-body\"")).await.status, 400);
    assert_eq!(client.key("secret-key").post(USAGE, &usage("agent-1", "svc-1", 6)).await.status, 409);

    let is_attempt = |span: &Span| span.kind == SpanKind::Client && span.is_error;
    collector.find("an attempt", is_attempt).await;
    client.with("x-request-id", "r-last").get("/api/v1/services").await;
    collector.find("the last request", |span| is_of_request(span, "r-last")).await;
    let is_lookup = |span: &Span| span.attribute("http.route") == "/api/v1/idempotency/:key";
    let lookup = collector.find("the look-up of the key", is_lookup).await;
    assert_eq!(lookup.attribute("url.path"), "/api/v1/idempotency/*");
    let spans = format!("{:?}", collector.spans());
    for hidden in [key, secret, "secret"] {
        assert!(!spans.contains(hidden), "{hidden}: {spans}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_emptied_takes_as_many_spans_again() {
    let collector = Collector::start().await;
    let process = start(&collector, &[SOON, &[("OTEL_BSP_MAX_QUEUE_SIZE", "4")]].concat()).await;
    let client = process.client();
    for number in 0..20 {
        let id = format!("r-{number}");
        client.with("x-request-id", &id).get("/api/v1/services").await;
        collector.find("the request", |span| is_of_request(span, &id)).await;
    }
    let metrics = client.get("/api/v1/metrics").await.text;
    assert!(metrics.contains("\nagentpay_trace_spans_total{outcome=\"dropped\"} 0\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_exports_what_waits() {
    let collector = Collector::start().await;
    let mut process = start(&collector, &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]).await;
    let client = process.client();
    let requests = (0..20).map(|number| {
        let client = client.clone();
        let record = usage("agent-1", &format!("svc-{number}"), 1);
        tokio::spawn(async move { client.post(USAGE, &record).await.status })
    });
    for answered in requests.collect::<Vec<_>>() {
        assert_eq!(answered.await.expect("a task"), 201);
    }
    assert_eq!(collector.spans().len(), 0);
    process.signal("-TERM");
    assert!(process.exit().await.success());
    let spans = collector.spans();
    let requests: Vec<&Span> = spans.iter().filter(|span| span.attribute("http.route") == USAGE).collect();
    assert_eq!(requests.len(), 20);
    // Each belongs to a batch, however they met.
    for request in requests {
        let batch = spans.iter().find(|span| span.name == "commit batch" && span.links.contains(&request.id()));
        assert!(batch.is_some_and(|batch| request.links.contains(&batch.id())), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_fails_costs_spans_and_nothing_else() {
    let (silent, refusing) = (SilentServer::start(), Receiver::start().await);
    refusing.usually(Behaviour::Status(500));
    let refusing = refusing.url.trim_end_matches("/hook").to_owned();
    let absent = format!("http://127.0.0.1:{}", free_port());
    for (endpoint, outcome) in
        [(format!("http://{}", silent.address), "dropped"), (refusing, "failed"), (absent, "failed")]
    {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ];
        let hangs = outcome == "dropped";
        // As long as no test takes.
        let environment = environment
            .map(|(name, value)| (name, if hangs && name == "OTEL_EXPORTER_OTLP_TIMEOUT" { "3600000" } else { value }));
        let mut process = Process::start_on(&new_database().await, &environment);
        let client = process.client();
        for number in 0..40 {
            let answer = client.post(USAGE, &usage("agent-1", &format!("svc-{number}"), 1)).await;
            assert_eq!(answer.status, 201, "{endpoint}: {answer:?}");
        }
        let lost = format!("agentpay_trace_spans_total{{outcome=\"{outcome}\"}} ");
        let is_counted = async || {
            let metrics = client.get("/api/v1/metrics").await.text;
            let count = metrics.lines().find_map(|line| line.strip_prefix(&lost)).expect("a count");
            count.parse::<u64>().expect("a number") > 0
        };
        wait_until(is_counted).await;
        process.signal("-TERM");
        let took = tokio::time::Instant::now();
        assert!(process.exit().await.success(), "{endpoint}");
        // Far below the limit of a stop, which is 23 s.
        assert!(took.elapsed() < Duration::from_secs(15), "{endpoint}: {:?}", took.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_the_trace_of_a_request() {
    let (options, port) = (new_database().await, free_port());
    let (database, text) = (url(&options), port.to_string());
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let mut logged = Logged::start(&[
        ("DATABASE_URL", database.as_str()),
        ("PORT", &text),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
    ]);
    logged.says("server started").await;
    let client = Client::new(([127, 0, 0, 1], port).into()).with("traceparent", NOT_RECORDED);
    client.with("x-request-id", "r-1").get("/api/v1/services").await;
    sqlx::query("ALTER TABLE services RENAME TO moved")
        .execute(&crate::support::pool(&options))
        .await
        .expect("a statement");
    client.with("x-request-id", "r-2").get("/api/v1/services/s-1").await;
    logged.says("request failed").await;
    Client::new(([127, 0, 0, 1], port).into()).get("/api/v1/services").await;
    logged.says("spans cannot be exported").await;
    logged.terminate();
    assert!(logged.exit().await.success());
    let text = logged.text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let find = |message: &str, id: &str| {
        let is_one = |line: &&Value| line["fields"]["message"] == message && line["fields"]["requestId"] == id;
        lines.iter().find(is_one).unwrap_or_else(|| panic!("{message}, {id}: {text}"))
    };
    assert_eq!(find("request completed", "r-1")["fields"]["traceId"], TRACE_ID);
    assert_eq!(find("request failed", "r-2")["span"]["traceId"], TRACE_ID);
    assert_eq!(text.matches("spans cannot be exported").count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_passed_on_while_traces_are_off() {
    let receiver = Receiver::start().await;
    let process = Process::start_on(&new_database().await, SOON);
    make_webhook(&process.client(), &receiver).await;
    let caller = process.client().with("traceparent", RECORDED).with("tracestate", "vendor=1");
    assert_eq!(caller.post(USAGE, &usage("agent-1", "svc-1", 5)).await.status, 201);
    let received = receiver.reach(1).await.remove(0);
    assert_eq!((received.header("traceparent"), received.header("tracestate")), ("", ""));
    // No thread exports.
    let collector = Collector::start().await;
    let recording = start(&collector, SOON).await;
    assert_eq!((exporting_threads(&process), exporting_threads(&recording)), (0, 1));
}

fn exporting_threads(process: &Process) -> usize {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.child.id())).expect("its threads");
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.flatten().map(name).filter(|name| name.starts_with("OpenTelemetry")).count()
}
