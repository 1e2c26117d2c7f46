//! The background verification: what it finds is seen everywhere, and it runs once in an interval, on one replica.

use std::time::Duration;

use agentpay_billing::jobs::verifier::Outcome;
use agentpay_billing::store::audit::{self, Check};
use agentpay_billing::store::verification::{self, CheckResult, Turn};
use serde_json::{Value, json};
use sqlx::postgres::PgPool;

use crate::support::{
    Client, Logged, Service, findings, free_port, new_database, pool, store_records, url, usage, wait_until,
};

const A_DAY: &[(&str, &str)] = &[("VERIFY_INTERVAL_MS", "86400000")];

async fn execute(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.expect(sql);
}

/// One pair with a bill, and rows that do not fit: a total, the form of a record, and the number of a caller's records.
async fn break_rows(service: &Service) {
    let client = service.client();
    client.key("secret-key").post("/api/v1/usage", &usage("a", "s", 3)).await;
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    execute(
        &service.pool,
        "UPDATE totals SET outstanding = outstanding + 7 WHERE service_id = ''
             AND shard = (SELECT min(shard) FROM totals WHERE service_id = '');
         UPDATE usage_counters SET settled = settled + 1;
         UPDATE idempotency_keys SET status = 500;
         UPDATE caller_totals SET records = records + 1;",
    )
    .await;
}

fn named((name, count): (&str, i64)) -> (String, i64) {
    (name.to_owned(), count)
}

fn counts(outcome: Outcome) -> Vec<(String, i64)> {
    match outcome {
        Outcome::Verified(checks) => {
            let found = checks.into_iter().filter(|check| check.findings > 0);
            found.map(|check| (check.name, check.findings)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_changed_by_hand_is_seen_in_the_metrics_in_deep_health_and_in_the_log() {
    let database = new_database().await;
    let (port, database_url) = (free_port(), url(&database));
    let text = port.to_string();
    let process = Logged::start(&[("DATABASE_URL", &database_url), ("PORT", &text), ("VERIFY_INTERVAL_MS", "100")]);
    process.says("server started").await;
    let client = Client::new(([127, 0, 0, 1], port).into());
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 3)).await.status, 201);
    let check = async || client.get("/api/v1/health/deep").await.json()["checks"][8].clone();
    let figure = async |name: &str| -> Option<f64> {
        let metrics = client.get("/api/v1/metrics").await.text;
        metrics.lines().find_map(|line| line.strip_prefix(&format!("agentpay_verify_{name} "))?.parse().ok())
    };
    wait_until(async || figure("findings{check=\"pairs\"}").await == Some(0.0)).await;
    assert!(figure("last_success_timestamp_seconds").await > Some(0.0));
    assert!(figure("duration_seconds").await.is_some());
    let well = check().await;
    assert_eq!(
        (&well["status"], well["detail"]["findings"].as_object().map(|found| found.len())),
        (&json!("ok"), Some(8))
    );
    assert!(well["detail"]["lastSuccessAt"].is_i64() && well["detail"]["durationMs"].is_i64());
    assert_eq!(well["detail"]["state"], "complete");
    process.says("the verification found nothing").await;

    let pool = pool(&database);
    execute(&pool, "UPDATE usage_counters SET settled = 1").await;
    wait_until(async || figure("findings{check=\"pairs\"}").await == Some(1.0)).await;
    let found = check().await;
    assert_eq!((&found["name"], &found["status"]), (&json!("verify"), &json!("error")));
    assert_eq!(found["detail"]["findings"]["pairs"], 1);
    assert_eq!(client.get("/api/v1/health/deep").await.json()["status"], "error");
    process.says("public a/s: settled 1 but the ledger bills 0").await;
    process.says("the verification found that the database does not add up").await;

    execute(&pool, "UPDATE usage_counters SET settled = 0").await;
    wait_until(async || check().await["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_check_finds_its_own_and_a_reset_forgets_it() {
    let service = Service::start(&[("ALLOW_ADMIN_RESET", "true")]).await;
    break_rows(&service).await;
    let found = counts(service.verifier.run_once().await.expect("a run"));
    // The pair has a bill of three and says four, so the total of what was recorded is off, too.
    assert_eq!(found, [("pairs", 1), ("totals", 2), ("callers", 1), ("records", 1)].map(named));
    assert!(findings(&service.pool).await.iter().all(|finding| !finding.contains("secret-key")), "keys are for no log");
    assert_eq!(service.client().send("POST", "/api/v1/admin/reset", None).await.status, 200);
    let detail = service.client().get("/api/v1/health/deep").await.json()["checks"][8]["detail"].clone();
    let nothing = json!({
        "state": null, "lastSuccessAt": null, "durationMs": null, "findings": {}, "cancelledSteps": {},
    });
    assert_eq!(detail, nothing);
    assert_eq!(counts(service.verifier.run_once().await.expect("a run")), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_due_when_the_last_one_ended_an_interval_ago_whoever_ran_it() {
    let database = new_database().await;
    let first = Service::start_on(database.clone(), A_DAY).await;
    counts(first.verifier.run_once().await.expect("a run"));
    // As after a restart.
    let second = Service::start_on(database, A_DAY).await;
    for service in [&first, &second] {
        assert_eq!(service.verifier.run_once().await.expect("a look"), Outcome::NotDue);
    }
    execute(&second.pool, "UPDATE verification SET finished_at = finished_at - interval '1 day'").await;
    counts(second.verifier.run_once().await.expect("a run"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_verifies_at_a_time_and_another_takes_over_when_its_lease_has_ended() {
    let service = Service::start(A_DAY).await;
    let (a, b) = tokio::join!(service.verifier.run_once(), service.verifier.run_once());
    let outcomes = [a.expect("a turn"), b.expect("a turn")];
    let runs = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Verified(_))).count();
    assert_eq!(runs, 1, "{outcomes:?}");

    execute(&service.pool, "UPDATE verification SET finished_at = NULL").await;
    let mut connection = service.pool.acquire().await.expect("a connection");
    let (day, minute) = (Duration::from_hours(24), Duration::from_mins(1));
    let turn = verification::claim(&mut connection, day, minute).await.expect("a claim");
    let Turn::Mine(lease) = turn else { panic!("{turn:?}") };
    assert_eq!(service.verifier.run_once().await.expect("a look"), Outcome::LeftToOthers);
    execute(&service.pool, "UPDATE verification SET not_before = now()").await;
    counts(service.verifier.run_once().await.expect("a run"));
    // The replica that was late neither goes on nor stores what it has found.
    assert!(verification::renew(&mut connection, lease, minute).await.expect("an answer").is_none());
    let found = CheckResult { name: "pairs".to_owned(), findings: 9, cancelled_steps: 0 };
    verification::finish(&mut connection, lease, minute, &[found]).await.expect("an answer");
    let findings = "SELECT sum(value::bigint)::bigint FROM verification, jsonb_each_text(findings)";
    assert_eq!(service.number(findings).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_another_replica_takes_over_counts_as_no_success() {
    let service = Service::start(A_DAY).await;
    let take_over = "CREATE FUNCTION take_over() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN UPDATE verification SET not_before = NEW.not_before + interval '1 hour'; RETURN NULL; END $$;
        CREATE TRIGGER take_over AFTER UPDATE ON verification
        FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION take_over()";
    execute(&service.pool, take_over).await;
    assert_eq!(service.verifier.run_once().await.expect("a run"), Outcome::LeftToOthers);
    let deep = service.client().get("/api/v1/health/deep").await.json();
    assert!(deep["checks"][6]["detail"]["verify"]["lastSuccessAt"].is_null(), "{deep}");
    assert_eq!(service.number("SELECT count(*) FROM verification WHERE finished_at IS NULL").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_is_seen_and_is_not_tried_again_at_once() {
    let service = Service::start(A_DAY).await;
    execute(&service.pool, "ALTER TABLE settlements RENAME COLUMN requests TO renamed").await;
    assert!(service.verifier.run_once().await.is_err());
    let job =
        async || service.client().get("/api/v1/health/deep").await.json()["checks"][6]["detail"]["verify"].clone();
    assert_eq!(job().await["lastError"], "PostgreSQL refused: SQLSTATE 42703");
    assert_eq!(service.verifier.run_once().await.expect("a look"), Outcome::LeftToOthers);
    service.clock.advance_ms(60_000);
    assert_eq!(service.client().get("/api/v1/health/ready").await.json()["failing"], json!(["verify"]));
    execute(
        &service.pool,
        "ALTER TABLE settlements RENAME COLUMN renamed TO requests;
         UPDATE verification SET not_before = not_before - interval '1 hour'",
    )
    .await;
    counts(service.verifier.run_once().await.expect("a run"));
    assert!(job().await["lastSuccessAt"].is_i64());
    assert_eq!(service.client().get("/api/v1/health/ready").await.json().get("failing"), None::<&Value>);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_too_long_is_left_out_and_the_run_is_incomplete_until_the_next_one() {
    let mut service = Service::start(A_DAY).await;
    break_rows(&service).await;
    // The check of callers reads the size of each record, which now takes forever.
    execute(
        &service.pool,
        "ALTER FUNCTION idempotency_record_bytes RENAME TO size;
         CREATE FUNCTION idempotency_record_bytes(text, text, text, text, text) RETURNS bigint LANGUAGE sql VOLATILE AS
             'SELECT size($1, $2, $3, $4, $5) FROM pg_sleep(3600)'",
    )
    .await;
    service.verifier.step_limit = Duration::from_secs(5);
    let Outcome::Verified(checks) = service.verifier.run_once().await.expect("a run") else { panic!("no run") };
    let cancelled: Vec<(&str, i64)> = checks
        .iter()
        .map(|check| (check.name.as_str(), check.cancelled_steps))
        .filter(|(_, steps)| *steps > 0)
        .collect();
    assert_eq!(cancelled, [("callers", 1)]);
    // The checks after it were performed.
    assert_eq!(counts(Outcome::Verified(checks)), [("pairs", 1), ("totals", 2), ("records", 1)].map(named));
    let client = service.client();
    let detail = client.get("/api/v1/health/deep").await.json()["checks"][8]["detail"].clone();
    assert_eq!((&detail["state"], &detail["cancelledSteps"]["callers"]), (&json!("incomplete"), &json!(1)));
    let metrics = service.metrics().await;
    assert!(metrics.contains("\nagentpay_verify_cancelled_steps{check=\"callers\"} 1\n"), "{metrics}");
    assert!(metrics.contains("\nagentpay_verify_cancelled_steps{check=\"pairs\"} 0\n"), "{metrics}");
    // The same step would fail again, so the next run begins after the interval and not before.
    assert_eq!(service.verifier.run_once().await.expect("a look"), Outcome::NotDue);
    assert_eq!(client.get("/api/v1/health/ready").await.json().get("failing"), None::<&Value>);

    execute(
        &service.pool,
        "DROP FUNCTION idempotency_record_bytes;
         ALTER FUNCTION size RENAME TO idempotency_record_bytes;
         UPDATE usage_counters SET settled = settled - 1;
         UPDATE totals SET outstanding = outstanding - 7 WHERE service_id = ''
             AND shard = (SELECT min(shard) FROM totals WHERE service_id = '');
         UPDATE idempotency_keys SET status = 201;
         UPDATE caller_totals SET records = records - 1;
         UPDATE verification SET finished_at = NULL",
    )
    .await;
    assert_eq!(counts(service.verifier.run_once().await.expect("a run")), []);
    let check = client.get("/api/v1/health/deep").await.json()["checks"][8].clone();
    assert_eq!((&check["status"], &check["detail"]["state"]), (&json!("ok"), &json!("complete")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_the_step_that_is_under_way() {
    let database = new_database().await;
    let (text, database_url) = (free_port().to_string(), url(&database));
    let mut process = Logged::start(&[("DATABASE_URL", &database_url), ("PORT", &text), ("VERIFY_INTERVAL_MS", "100")]);
    process.says("server started").await;
    let pool = pool(&database);
    // The step that counts pairs does not end.
    execute(
        &pool,
        "CREATE FUNCTION slow(bigint) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT pg_sleep(3600)::text::bigint';
         ALTER TABLE usage_counters RENAME TO counters;
         CREATE VIEW usage_counters AS SELECT tenant_id, agent_id, service_id, pair_id, outstanding, slow(settled) AS settled,
             reset, version FROM counters CROSS JOIN (SELECT pg_sleep(3600)) AS nap",
    )
    .await;
    let under_way = async || -> i64 {
        let steps =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '-- audit::%'
                     AND state = 'active'";
        sqlx::query_scalar(steps).fetch_one(&pool).await.expect("a number")
    };
    wait_until(async || under_way().await == 1).await;
    process.terminate();
    assert!(process.exit().await.success());
    wait_until(async || under_way().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_together_find_what_the_whole_finds() {
    let service = Service::start(&[]).await;
    for number in 0..5 {
        store_records(&service.pool, &format!("ip:192.0.2.{number}"), 40, 0, 300).await;
    }
    execute(
        &service.pool,
        "INSERT INTO tenants (tenant_id) SELECT 'tnt_' || n FROM generate_series(1, 5) AS n;
         INSERT INTO agents (tenant_id, agent_id) SELECT 'tnt_' || n, 'a' FROM generate_series(1, 5) AS n;
         INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, settled, version)
         SELECT 'tnt_' || n, 'a', 's', 1, 1, 1 FROM generate_series(1, 4) AS n;
         INSERT INTO totals (tenant_id, service_id, shard, pairs, events)
         SELECT 'tnt_' || n, '', 0, 2, 3 FROM generate_series(2, 5) AS n;
         UPDATE idempotency_keys SET status = 500;",
    )
    .await;
    let mut whole = findings(&service.pool).await;
    whole.sort();
    let mut connection = service.pool.acquire().await.expect("a connection");
    for rows_max in [1, 7, 1_000_000] {
        let steps = audit::steps(&mut connection, rows_max).await.expect("steps");
        let mut found = Vec::new();
        for step in &steps {
            found.extend(audit::find(&mut connection, step, 1000).await.expect("a step"));
        }
        found.sort();
        assert_eq!(found, whole);
        let parts = steps.iter().filter(|step| [Check::Pairs, Check::Records].contains(&step.check)).count();
        assert_eq!(parts > 5, rows_max < 1_000_000, "{steps:?}");
    }
    let step = audit::steps(&mut connection, 1_000_000).await.expect("steps").remove(Check::Records as usize);
    assert_eq!(audit::find(&mut connection, &step, 3).await.expect("a step").len(), 3);
    assert!(whole.len() > 200);
}
