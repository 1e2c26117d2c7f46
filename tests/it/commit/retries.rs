//! Requests whose batch was rolled back: those that can still commit do so once, and the others are told that nothing
//! was changed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agentpay_billing::clock::Clock;
use agentpay_billing::command::{Answer as Told, Request, TransactionalCommand};
use agentpay_billing::commit::Committer;
use agentpay_billing::domain::audit_log::Origin;
use agentpay_billing::domain::caller::Tenant;
use agentpay_billing::domain::refusal::Refusal;
use agentpay_billing::full_callers::FullCallers;
use agentpay_billing::job_health::JobHealth;
use agentpay_billing::runtime_config::SharedRuntimeConfig;
use agentpay_billing::settings::committer::CommitterSettings;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Answer, Hold, LIMIT, Moment, Proxy, Service, new_database, of_agent, pool, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const NOTHING_CHANGED: &str = "the store is unavailable; nothing was changed";
const UNKNOWN: &str =
    "the outcome of this write is unknown; repeat it with the same Idempotency-Key, or check before repeating it";

fn unavailable(message: &str) -> (u16, String, String) {
    (503, "service_unavailable".to_owned(), message.to_owned())
}

/// A trigger that the service does not know: writes of the agent `unlucky` are rolled back with this SQLSTATE.
async fn roll_back_the_unlucky(service: &Service, code: &str) {
    let rule = format!(
        "CREATE OR REPLACE FUNCTION roll_back() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '{code}'; END $$;
         CREATE OR REPLACE TRIGGER unlucky BEFORE INSERT ON usage_counters
         FOR EACH ROW WHEN (NEW.agent_id = 'unlucky') EXECUTE FUNCTION roll_back()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(rule)).execute(&service.pool).await.expect("a trigger");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_rolled_back_time_and_again_is_given_up_alone() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    // A serialization failure, and a deadlock.
    for code in ["40001", "40P01"] {
        roll_back_the_unlucky(&service, code).await;
        let agents = ["lucky", "unlucky", "fortunate"];
        let records = agents.map(|agent| (service.client().key(&format!("{agent}{code}")), usage(agent, "s", 1)));
        let answers = service.record_together(records.to_vec()).await;
        assert_eq!((answers[0].status, answers[2].status), (201, 201), "{code}: {answers:?}");
        assert_eq!(answers[1].error(), unavailable(NOTHING_CHANGED), "{code}");
        // It left nothing behind, and its key runs when it can.
        assert_eq!(service.number("SELECT count(*) FROM usage_counters WHERE agent_id = 'unlucky'").await, 0);
        assert_eq!(service.client().get(&format!("/api/v1/idempotency/unlucky{code}")).await.status, 404);
    }
    sqlx::raw_sql("DROP TRIGGER unlucky ON usage_counters").execute(&service.pool).await.expect("drop");
    let again = service.client().key("unlucky40001").post(USAGE, &usage("unlucky", "s", 1)).await;
    assert_eq!((again.status, again.replayed), (201, false));
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_violates_a_constraint_fails_alone() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    // A rule the program does not know of, as a DBA might add it.
    sqlx::query("ALTER TABLE usage_counters ADD CONSTRAINT no_forbidden_agent CHECK (agent_id <> 'forbidden')")
        .execute(&service.pool)
        .await
        .expect("constraint");
    let records = (0..50).map(|number| {
        let agent = if number == 25 { "forbidden".to_owned() } else { format!("agent-{number}") };
        (service.client().key(&format!("k{number}")), usage(&agent, "s", 1))
    });
    let mut statuses = BTreeMap::new();
    for answer in service.record_together(records.collect()).await {
        *statuses.entry(answer.status).or_insert(0) += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(201, 49), (500, 1)]));
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 49);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_of_a_request_that_left_no_record_is_executed() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    client.send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":2}"#)).await;
    for agent in ["occupant", "a"] {
        assert_eq!(client.post(USAGE, &usage(agent, "s", 1)).await.status, 201);
    }
    // There is no capacity for the first of the two. Its refusal is not stored, and then the settlement frees capacity.
    let duplicate = (client.key("k"), USAGE, usage("b", "s", 7));
    let settlement = (client.clone(), "/api/v1/settle", json!({ "agent": "a", "serviceId": "s" }));
    let mut answers = service.post_together(vec![duplicate.clone(), duplicate, settlement]).await;
    assert_eq!(answers.pop().map(|settled| settled.status), Some(200));
    answers.sort_by_key(|answer| answer.status);
    let told: Vec<(u16, bool)> = answers.iter().map(|answer| (answer.status, answer.replayed)).collect();
    assert_eq!(told, [(201, false), (429, false)], "{answers:?}");
    let again = client.key("k").post(USAGE, &usage("b", "s", 7)).await;
    assert!(again.replayed && again.same(&answers[0]), "{again:?}");
    assert_eq!(
        service.number("SELECT outstanding + settled + reset FROM usage_counters WHERE agent_id = 'b'").await,
        7
    );
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_request_that_finds_the_queue_full_is_refused_and_delays_no_other() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("COMMIT_QUEUE_MAX", "1")]).await;
    let client = service.client();
    client.post(USAGE, &usage("locked", "s", 1)).await;
    // The wait for a lock, which fails when the test has come so far, and not after half a second.
    let lock_timeout = "RAISE EXCEPTION 'locked' USING ERRCODE = 'lock_not_available';";
    let hold = Hold::begin_then(&service.pool, &of_agent("locked"), lock_timeout).await;
    let post = |agent: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.post(USAGE, &usage(agent, "s", 1)).await })
    };
    let blocked = post("locked");
    hold.has_one().await;
    // This one takes the only place, in which the other could have waited.
    let free = post("free");
    service.queued(1).await;
    hold.release().await;
    let refused: Answer = blocked.await.expect("a client");
    assert_eq!(refused.error(), unavailable("the write queue is full; nothing was changed"));
    assert_eq!(free.await.expect("a client").status, 201);
    sqlx::raw_sql("DROP TRIGGER hold ON usage_counters").execute(&service.pool).await.expect("no trigger");
    assert_eq!(client.post(USAGE, &usage("locked", "s", 1)).await.json()["total"], 2);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_stays_blocked_does_not_hold_up_one_that_no_longer_is() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "60000")]).await;
    let client = service.client();
    let post = |agent: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.post(USAGE, &usage(agent, "s", 1)).await })
    };
    let mut holders = Vec::new();
    for agent in ["long", "short"] {
        client.post(USAGE, &usage(agent, "s", 1)).await;
        let mut holder = service.pool.begin().await.expect("transaction");
        let lock = "SELECT FROM usage_counters WHERE agent_id = $1 FOR UPDATE";
        sqlx::query(lock).bind(agent).execute(&mut *holder).await.expect("lock");
        holders.push(holder);
    }
    let long = post("long");
    service.blocked(1).await;
    let short = post("short");
    // The lane of all others serves this one after it gave up both.
    assert_eq!(post("free").await.expect("a client").status, 201);
    holders.pop().expect("the short one").rollback().await.expect("rollback");
    wait_until(async || short.is_finished()).await;
    assert_eq!(short.await.expect("a client").status, 201);
    assert!(!long.is_finished());
    holders.pop().expect("the long one").rollback().await.expect("rollback");
    assert_eq!(long.await.expect("a client").status, 201);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_in_a_lane_that_lost_its_database_are_refused_before_their_deadline_and_change_nothing() {
    let database = new_database().await;
    let proxy = Proxy::start(&database).await;
    let environment = [("COMMIT_LANES", "1"), ("ALLOW_ADMIN_RESET", "true"), ("REQUEST_TIMEOUT_MS", "60000")];
    let mut service = Service::start_on(proxy.options(), &environment).await;
    service.pool = pool(&database);
    let client = service.client();
    client.post(USAGE, &usage("a", "s", 1)).await;
    // The lane is busy with a change of the limits, whose COMMIT will be the last thing that the lane does for a while.
    proxy.at_next_commit(Moment::HeldThenCut);
    let send = |method: &'static str, path: &'static str, body: String| {
        let client = client.clone();
        tokio::spawn(async move { client.send(method, path, Some(&body)).await })
    };
    let change = send("PATCH", "/api/v1/config", r#"{"bulkMaxItems":7}"#.to_owned());
    proxy.happened().await;
    // A reset has a transaction of its own, so these three would be tried one by one.
    let mut waiting = Vec::new();
    for (path, body) in [
        (USAGE, usage("a", "s", 10).to_string()),
        ("/api/v1/admin/reset", "{}".to_owned()),
        (USAGE, usage("a", "s", 100).to_string()),
    ] {
        waiting.push(send("POST", path, body));
        service.queued(waiting.len()).await;
    }
    proxy.close();
    proxy.release();
    assert_eq!(change.await.expect("a client").error(), unavailable(UNKNOWN));
    for request in waiting {
        wait_until(async || request.is_finished()).await;
        assert_eq!(request.await.expect("a client").error(), unavailable(NOTHING_CHANGED));
    }
    proxy.open();
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.json()["total"], 2);
    assert_eq!(client.get("/api/v1/config").await.json()["config"]["bulkMaxItems"], 100);
    service.verify().await;
}

#[tokio::test]
async fn a_request_that_no_lane_is_left_for_is_refused_at_once() {
    let settings = CommitterSettings {
        lanes: 1,
        batch_max: 1,
        queue_max: 1,
        ttl_ms: 1000,
        require_registered_services: false,
        statement_limit: Duration::from_secs(3),
        keyring: Default::default(),
    };
    let config = SharedRuntimeConfig::new(Default::default());
    let clock = Clock::default();
    let health = JobHealth::new(clock.clone());
    let (database, full, mut lanes) = (new_database().await, FullCallers::default(), JoinSet::new());
    let committer = Committer::start(&settings, database, clock, config, health, full, &mut lanes);
    lanes.shutdown().await;
    let far = Instant::now() + Duration::from_secs(3600);
    // Its place in the queue is free again for the second one.
    for _ in 0..2 {
        let request = Request {
            tenant: Tenant::public(),
            origin: Origin::CLI,
            keyed: None,
            method: "POST",
            path: USAGE.to_owned(),
            request_id: "r".to_owned(),
            trace: None,
            deadline: far,
            command: TransactionalCommand::SetPaused(true).into(),
        };
        let answer = tokio::time::timeout(LIMIT, committer.submit(request.into())).await;
        assert_eq!(answer.expect("at once"), Told::Refused(Refusal::StoreUnavailable));
    }
}
