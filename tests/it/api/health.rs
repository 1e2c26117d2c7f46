//! HTTP contract, section 16.3: deep health; and what metrics and health say while the database is away.

use agentpay_billing::local_postgres::LocalPostgres;
use serde_json::{Value, json};

use crate::support::{LIMIT, Service, needs_one_cell};

const PATH: &str = "/api/v1/health/deep";
const NAMES: [&str; 9] =
    ["database", "pool", "commitQueue", "janitor", "webhooks", "memory", "jobs", "clock", "verify"];
const JOBS: [&str; 12] = [
    "config",
    "janitor_expired",
    "janitor_caps",
    "janitor_events",
    "full_callers",
    "webhook_expand",
    "webhook_lease",
    "webhook_secrets",
    "webhook_record",
    "webhook_prune",
    "verify",
    "commit",
];

fn names(report: &Value) -> Vec<&str> {
    report["checks"].as_array().expect("checks").iter().map(|check| check["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn the_report_has_all_members_in_order() {
    if needs_one_cell("several cells have one more check, which cells::outages tests") {
        return;
    }
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000")]).await;
    let answer = service.client().get(PATH).await;
    let report = answer.json();
    let members: Vec<&String> = report.as_object().expect("an object").keys().collect();
    let expected = ["status", "uptimeSeconds", "memory", "pid", "node", "checks", "checksTotal", "nextChecksCursor"];
    assert_eq!(
        (answer.status, members),
        (200, expected.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().iter().collect())
    );
    assert_eq!(
        (&report["status"], &report["checksTotal"], &report["nextChecksCursor"]),
        (&json!("ok"), &json!(9), &Value::Null)
    );
    assert_eq!(report["node"], format!("agentpay-billing {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(report["pid"], std::process::id());
    assert!(report["uptimeSeconds"].is_u64() && report["memory"]["rssMb"].as_u64().expect("memory") > 0);
    assert_eq!(report["memory"]["rssMb"], report["memory"]["heapUsedMb"]);
    assert_eq!(names(&report), NAMES);
    let details: Vec<Vec<&String>> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .map(|check| check["detail"].as_object().expect("detail").keys().collect())
        .collect();
    let expected: [&[&str]; 9] = [
        &["latencyMs"],
        &["inUse", "idle", "max"],
        &["depth", "cap"],
        &["lagSeconds", "lastRunAt"],
        &["pending", "oldestDueSeconds"],
        &["rssMb", "heapUsedMb"],
        &JOBS,
        &["offsetMs"],
        &["state", "lastSuccessAt", "durationMs", "findings", "cancelledSteps"],
    ];
    assert_eq!(details, expected);
    assert_eq!(
        report["checks"][2],
        json!({ "name": "commitQueue", "status": "ok", "detail": { "depth": 0, "cap": 10000 } })
    );
    assert_eq!(
        report["checks"][3],
        json!({ "name": "janitor", "status": "ok", "detail": { "lagSeconds": 0, "lastRunAt": null } })
    );
    service.janitor.run_once().await.expect("janitor");
    assert!(service.client().get(PATH).await.json()["checks"][3]["detail"]["lastRunAt"].is_i64());
}

#[tokio::test]
async fn a_janitor_that_lags_is_a_warning() {
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000"), ("IDEMPOTENCY_CACHE_TTL_MS", "1000")]).await;
    service.client().key("k").post("/api/v1/usage", &crate::support::usage("a", "s", 1)).await;
    service.clock.advance_ms(700_000);
    let check = service.client().get(PATH).await.json()["checks"][3].clone();
    // Time goes on meanwhile.
    let lag_seconds = check["detail"]["lagSeconds"].as_i64().expect("a number");
    assert!(check["status"] == "warn" && (699..700 + LIMIT.as_secs() as i64).contains(&lag_seconds), "{check}");
}

#[tokio::test]
async fn checks_are_paged_by_name() {
    if needs_one_cell("several cells have one more check, which cells::outages tests") {
        return;
    }
    let service = Service::start(&[]).await;
    let client = service.client();
    let first = client.get("/api/v1/health/deep?limit=4").await.json();
    assert_eq!((names(&first), &first["nextChecksCursor"]), (NAMES[..4].to_vec(), &json!("amFuaXRvcg")));
    let rest = client.get("/api/v1/health/deep?limit=5&cursor=amFuaXRvcg").await.json();
    assert_eq!((names(&rest), &rest["nextChecksCursor"]), (NAMES[4..].to_vec(), &Value::Null));
    for (query, message) in [
        ("cursor=!!", "cursor is malformed"),
        ("cursor=bWlzc2luZy1rZXk", "cursor is invalid or expired"),
        ("x=1", "unexpected query parameter: x"),
    ] {
        assert_eq!(client.get(&format!("{PATH}?{query}")).await.error().2, message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_the_reports_say_so_and_the_rest_is_503() {
    if needs_one_cell("it stops the only database") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("agentpay-health-{}", uuid::Uuid::new_v4()));
    let postgres = LocalPostgres::start(&dir, &[]).await.expect("a PostgreSQL");
    let service = Service::start_on(postgres.connect_options("agentpay"), &[("ADMIN_API_KEY", "admin")]).await;
    postgres.stop_immediately().await.expect("stop");
    let client = service.client().with("x-api-key", "unknown");
    let report = client.get(PATH).await.json();
    assert_eq!(report["status"], "error");
    assert_eq!(report["checks"][0], json!({ "name": "database", "status": "error", "detail": { "latencyMs": null } }));
    assert_eq!(report["checks"][4]["detail"], json!({ "pending": null, "oldestDueSeconds": null }));
    assert_eq!(
        (&report["checks"][3]["status"], &report["checks"][3]["detail"]["lagSeconds"]),
        (&json!("ok"), &Value::Null)
    );
    let unknown = json!({
        "state": null, "lastSuccessAt": null, "durationMs": null, "findings": null, "cancelledSteps": null,
    });
    assert_eq!(report["checks"][8]["detail"], unknown);
    let metrics = client.get("/api/v1/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("agentpay_commit_queue_depth 0\n"));
    for name in [
        "services_total",
        "settled_stroops_total",
        "paused",
        "idempotency_keys",
        "janitor_lag_seconds",
        "webhook_backlog",
        "webhook_oldest_due_seconds",
        "database_size_bytes",
        "verify_",
    ] {
        assert!(!metrics.text.contains(&format!("agentpay_{name}")), "{name}");
    }
    for (path, status) in
        [("/health", 200), ("/api/v1/version", 200), ("/api/v1/config", 200), ("/api/v1/services", 503)]
    {
        assert_eq!(client.get(path).await.status, status, "{path}");
    }
    service.pool.close().await;
    postgres.stop().await.expect("stop");
    std::fs::remove_dir_all(&dir).expect("remove");
}
