//! A fresh database has no statistics, and plans made then must serve when it has grown: the work per request is
//! compared by counts of buffers, never by the clock. `GROWTH_REQUESTS` sets how many requests are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{AssertSqlSafe, Row};

use crate::support::{Service, usage};

const CLIENTS: u64 = 64;
const PAIRS: u64 = 10_000;

/// Buffers of tables and indexes touched so far, and rows read by sequential scans of the tables that grow.
async fn work(service: &Service) -> (i64, i64) {
    let buffers = service
        .number(
            "SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))::bigint \
             FROM pg_statio_user_tables",
        )
        .await;
    let scanned = service
        .number(
            "SELECT sum(seq_tup_read)::bigint FROM pg_stat_user_tables \
             WHERE relname IN ('idempotency_keys', 'usage_counters', 'events', 'settlements')",
        )
        .await;
    (buffers, scanned)
}

async fn send(service: &Service, first: u64, count: u64) {
    let next = Arc::new(AtomicU64::new(first));
    let tasks = (0..CLIENTS).map(|_| {
        let (next, client) = (next.clone(), service.client());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= first + count {
                    return;
                }
                let body = usage(&format!("agent-{}", number * 7919 % PAIRS), "s", 1);
                let answer = client.key(&format!("key-{number}")).post("/api/v1/usage", &body).await;
                assert_eq!((answer.status, answer.replayed), (201, false), "{answer:?}");
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        task.await.expect("a client");
    }
}

/// The statements that every usage, settlement and replay runs.
const WRITE_PATH: [&str; 7] = [
    "commit::read_counters",
    "commit::read_terms",
    "commit::read_responses",
    "commit::write",
    "commit::remove_expired",
    "usage::lock",
    "usage::pairs_of_agents",
];

/// How a lane plans its statements: `server::set_up_for_commits`.
const LANE_SETTINGS: &str =
    "SET plan_cache_mode = force_generic_plan; SET enable_hashjoin = off; SET enable_mergejoin = off;
                             SET enable_seqscan = off; SET jit = off";

/// The statements that requests for deliveries run. A lane runs these, too.
const REDELIVERIES: [&str; 4] = [
    "redeliveries::resend_named",
    "redeliveries::resend_failed",
    "redeliveries::resend_stale",
    "missed_events::deliver",
];

/// The general plan of each of these statements, as JSON. The texts are those the program was compiled with.
async fn plans(service: &Service, names: &[&'static str]) -> Vec<(&'static str, serde_json::Value)> {
    let mut connection = service.pool.acquire().await.expect("connection").detach();
    sqlx::raw_sql(LANE_SETTINGS).execute(&mut connection).await.expect("setting");
    let mut plans = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).expect(".sqlx") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a statement");
        let statement: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let query = statement["query"].as_str().expect("its text");
        let Some(name) = names.iter().copied().find(|name| query.starts_with(&format!("-- {name}\n"))) else {
            continue;
        };
        let parameters = statement["describe"]["parameters"]["Left"].as_array().expect("parameters").len();
        let arguments = vec!["NULL"; parameters].join(", ");
        let prepare = format!("DEALLOCATE ALL; PREPARE planned AS {query}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.expect("prepared");
        let explain = AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) EXECUTE planned ({arguments})"));
        let row = sqlx::raw_sql(explain).fetch_one(&mut connection).await.expect("a plan");
        plans.push((name, row.get::<serde_json::Value, _>(0)[0]["Plan"].clone()));
    }
    assert_eq!(plans.len(), names.len());
    assert!(names.iter().all(|name| plans.iter().any(|(planned, _)| planned == name)));
    plans
}

/// Every search that finds more than the row it wants, and leaves the rest out afterwards.
fn filtered(plan: &serde_json::Value, filters: &mut Vec<String>) {
    let filter = plan["Filter"].as_str().unwrap_or_default();
    if plan["Index Name"].is_string()
        && ["agent_id", "service_id", "caller"].iter().any(|column| filter.contains(column))
    {
        filters.push(format!("{}: {filter}", plan["Index Name"]));
    }
    plan["Plans"].as_array().into_iter().flatten().for_each(|part| filtered(part, filters));
}

/// Every table that the plan scans from its beginning to its end.
fn scanned(plan: &serde_json::Value, tables: &mut Vec<String>) {
    if plan["Node Type"] == "Seq Scan" {
        tables.push(plan["Relation Name"].as_str().unwrap_or_default().to_owned());
    }
    plan["Plans"].as_array().into_iter().flatten().for_each(|part| scanned(part, tables));
}

/// No plan of the write path scans a table that is not `small`, or is costly enough for PostgreSQL to compile it.
async fn check_plans(service: &Service, small: &[&str]) {
    let jit_above_cost = service.number("SELECT current_setting('jit_above_cost')::bigint").await as f64;
    for (name, plan) in plans(service, &WRITE_PATH).await {
        let mut tables = Vec::new();
        scanned(&plan, &mut tables);
        tables.retain(|table| !small.contains(&table.as_str()));
        assert_eq!(tables, Vec::<String>::new(), "{name} scans");
        let mut filters = Vec::new();
        filtered(&plan, &mut filters);
        assert_eq!(filters, Vec::<String>::new(), "{name} uses an index that finds too much");
        assert!(plan["Total Cost"].as_f64().is_some_and(|cost| cost < jit_above_cost / 10.0), "{name}: {plan}");
    }
}

/// Every condition with which the plan searches an index of the table.
fn searches(plan: &serde_json::Value, table: &str, conditions: &mut Vec<String>) {
    if plan["Relation Name"] == table && plan["Index Name"].is_string() {
        conditions.push(plan["Index Cond"].as_str().unwrap_or_default().to_owned());
    }
    plan["Plans"].as_array().into_iter().flatten().for_each(|part| searches(part, table, conditions));
}

#[tokio::test]
async fn requested_deliveries_are_found_by_indexes_of_their_webhook_or_their_ids() {
    let service = Service::start(&[]).await;
    for (name, plan) in plans(&service, &REDELIVERIES).await {
        let (mut tables, mut conditions) = (Vec::new(), Vec::new());
        scanned(&plan, &mut tables);
        assert_eq!(tables, Vec::<String>::new(), "{name} scans");
        searches(&plan, "webhook_deliveries", &mut conditions);
        let is_insert = name == "missed_events::deliver";
        let is_narrow = |condition: &String| condition.contains("webhook_id") || condition.contains("delivery_id");
        assert!(is_insert != conditions.iter().any(is_narrow), "{name}: {plan}");
        assert!(conditions.iter().all(is_narrow), "{name}: {conditions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_per_request_does_not_grow_with_the_database() {
    let requests = std::env::var("GROWTH_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let fifth: u64 = requests / 5;
    let service = Service::start(&[("JANITOR_INTERVAL_MS", "3600000"), ("COMMIT_LANES", "1")]).await;
    check_plans(&service, &[]).await;
    let mut buffers = Vec::new();
    for round in 0..5 {
        let before = work(&service).await;
        send(&service, round * fifth, fifth).await;
        let after = work(&service).await;
        buffers.push(after.0 - before.0);
        assert!(after.1 - before.1 < fifth as i64, "sequential scans read {} rows", after.1 - before.1);
    }
    // Autovacuum may have found by now that these have at most one page, and a scan is the best plan for one page.
    let small = ["services", "tenants", "totals", "webhooks"];
    check_plans(&service, &small).await;
    sqlx::query("ANALYZE").execute(&service.pool).await.expect("statistics");
    check_plans(&service, &small).await;
    println!("buffers per fifth: {buffers:?}");
    // A request touches about twenty buffers; a plan that scans touches hundreds.
    assert!(buffers[0] < 40 * fifth as i64, "the work is too much: {buffers:?}");
    assert!(buffers[4] < 2 * buffers[0], "the work grew: {buffers:?}");
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 5 * fifth as i64);
    assert_eq!(
        service.number("SELECT sum(outstanding + settled + reset)::bigint FROM usage_counters").await,
        5 * fifth as i64
    );
    service.verify().await;
}
