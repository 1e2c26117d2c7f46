//! One clock decides, the database's: replicas whose machines have other clocks expire, prune, lease and date as all others
//! do. And pollers of `since=` miss nothing, if they overlap as docs/api.md says.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

use crate::support::Behaviour;
use crate::support::{
    Client, Hold, Process, Receiver, Service, foreign_clock, new_database, pool, usage, verify, wait_until,
};

const USAGE: &str = "/api/v1/usage";
const HOUR_MS: i64 = 3_600_000;
/// How far the documents have a poller look back.
const OVERLAP_MS: i64 = 60_000;

/// A replica that prunes and sends all the time.
fn replica(database: &PgConnectOptions, clock: &[(&str, &str)]) -> Process {
    let own = [("JANITOR_INTERVAL_MS", "10"), ("WEBHOOK_ALLOW_PRIVATE", "true")];
    Process::start_on(database, &[&own, clock].concat())
}

async fn check(client: &Client, name: &str) -> Value {
    let report = client.get("/api/v1/health/deep").await.json();
    report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == name).expect(name).clone()
}

/// Waits until a job of the replica has ended twice from now, well or not: once it began after now.
async fn runs(client: &Client, job: &str) {
    let ended = async || {
        let job = check(client, "jobs").await["detail"][job].clone();
        (job["lastSuccessAt"].clone(), job["lastErrorAt"].clone())
    };
    for _ in 0..2 {
        let before = ended().await;
        wait_until(async || ended().await != before).await;
    }
}

async fn offset_ms(client: &Client) -> i64 {
    check(client, "clock").await["detail"]["offsetMs"].as_i64().expect("an offset")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_25_hours_ahead_deletes_no_live_key() {
    let Some(clock) = foreign_clock("+25h") else { return };
    let database = new_database().await;
    let servers = [replica(&database, &[]), replica(&database, &clock)];
    let (right, ahead) = (servers[0].client(), servers[1].client());
    let first = right.key("k1").post(USAGE, &usage("a", "s", 1)).await;
    let second = ahead.key("k2").post(USAGE, &usage("a", "s", 1)).await;
    runs(&ahead, "janitor_expired").await;
    for client in [&right, &ahead] {
        let (again, other) = (
            client.key("k1").post(USAGE, &usage("a", "s", 1)).await,
            client.key("k2").post(USAGE, &usage("a", "s", 1)).await,
        );
        assert!(again.replayed && again.same(&first) && other.replayed && other.same(&second), "{again:?} {other:?}");
    }
    // It says why it does not prune.
    let offset_ms = offset_ms(&ahead).await;
    assert!((offset_ms - 25 * HOUR_MS).abs() < HOUR_MS, "{offset_ms}");
    assert_eq!(check(&ahead, "clock").await["status"], "error");
    let jobs = check(&ahead, "jobs").await["detail"].clone();
    for job in ["janitor_expired", "janitor_caps", "webhook_lease", "webhook_prune"] {
        let error = jobs[job]["lastError"].as_str().unwrap_or_default().to_owned();
        assert!(
            error.starts_with("this machine's clock is ") && jobs[job]["lastSuccessAt"].is_null(),
            "{job}: {error}"
        );
    }
    let metrics = ahead.get("/api/v1/metrics").await.text;
    let shown =
        metrics.lines().find_map(|line| line.strip_prefix("agentpay_clock_offset_seconds ")?.parse::<f64>().ok());
    assert!(shown.is_some_and(|seconds| (seconds - 90_000.0).abs() < 3600.0), "{shown:?}");
    // The other one does, and its clock is fine.
    let right_clock = check(&right, "clock").await;
    assert_eq!(right_clock["status"], "ok", "{right_clock}");
    assert!(check(&right, "jobs").await["detail"]["janitor_expired"]["lastError"].is_null());
    verify(&pool(&database)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_replica_25_hours_behind_live_as_long_as_all_others() {
    let Some(clock) = foreign_clock("-25h") else { return };
    let database = new_database().await;
    let servers = [replica(&database, &[]), replica(&database, &clock)];
    let (right, behind) = (servers[0].client(), servers[1].client());
    let first = behind.key("k").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((first.status, first.replayed), (201, false));
    runs(&right, "janitor_expired").await;
    for client in [&right, &behind] {
        let again = client.key("k").post(USAGE, &usage("a", "s", 1)).await;
        assert!(again.replayed && again.same(&first), "{again:?}");
    }
    let record = behind.get("/api/v1/idempotency/k").await.json();
    let lives_ms = record["expiresAt"].as_i64().expect("a moment") - record["createdAt"].as_i64().expect("a moment");
    assert_eq!(lives_ms, 24 * HOUR_MS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_90_seconds_ahead_sends_no_webhook_that_another_one_has_leased() {
    let Some(clock) = foreign_clock("+90s") else { return };
    let database = new_database().await;
    let receiver = Receiver::start().await;
    receiver.usually(Behaviour::Silence);
    let servers = [replica(&database, &[]), replica(&database, &clock)];
    let (right, ahead) = (servers[0].client(), servers[1].client());
    right.post("/api/v1/webhooks", &json!({ "url": receiver.url, "events": ["usage.recorded"] })).await;
    right.post(USAGE, &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    // Had it leased by its own clock, the other one's lease of a minute would have been over.
    runs(&ahead, "webhook_lease").await;
    assert_eq!(receiver.received().len(), 1);
}

/// Reads all settlements or events from `since` on, page by page, and gives each with its id and its moment.
async fn read_since(client: &Client, list: &str, moment: &str, since: i64) -> Vec<(String, i64)> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/api/v1/{list}?since={since}&limit=2{cursor}")).await.json();
        for item in page["items"].as_array().expect("items") {
            items.push((item["id"].as_str().expect("an id").to_owned(), item[moment].as_i64().expect("a moment")));
        }
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

/// A poller as docs/api.md describes it.
struct Poller {
    client: Client,
    list: &'static str,
    moment: &'static str,
    overlap_ms: i64,
    newest: i64,
    seen: BTreeSet<String>,
}

impl Poller {
    fn new(client: Client, list: &'static str, moment: &'static str, overlap_ms: i64) -> Self {
        Self { client, list, moment, overlap_ms, newest: 0, seen: BTreeSet::new() }
    }

    /// What it has not seen before.
    async fn poll(&mut self) -> usize {
        let since = (self.newest - self.overlap_ms).max(0);
        let items = read_since(&self.client, self.list, self.moment, since).await;
        self.newest = items.iter().map(|(_, moment)| *moment).fold(self.newest, i64::max);
        items.into_iter().filter(|(id, _)| self.seen.insert(id.clone())).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_and_events_of_a_replica_10_seconds_behind_are_dated_as_all_others() {
    let Some(clock) = foreign_clock("-10s") else { return };
    let database = new_database().await;
    let servers = [replica(&database, &[]), replica(&database, &clock)];
    let (right, behind) = (servers[0].client(), servers[1].client());
    // Less than by what that clock is wrong, and more than any inaccuracy of a measurement.
    let mut settlements = Poller::new(right.clone(), "settlements", "settledAt", 5000);
    let mut events = Poller::new(right.clone(), "events", "ts", 5000);
    for (number, client) in [&right, &behind, &right, &behind].into_iter().enumerate() {
        let pair = json!({ "agent": format!("a{number}"), "serviceId": "s" });
        client.post(USAGE, &usage(&format!("a{number}"), "s", 1)).await;
        assert_eq!(client.post("/api/v1/settle", &pair).await.status, 200);
        assert_eq!((settlements.poll().await, events.poll().await), (1, 2), "after {number}");
    }
    let clock = check(&behind, "clock").await;
    assert_eq!(clock["status"], "warn", "{clock}");
}

/// A commit is dated when it begins, and may be seen after one that began later.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_poller_sees_what_is_committed_late() {
    let database = new_database().await;
    let (service, other) = (Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await);
    let late = "BEFORE INSERT ON settlements FOR EACH ROW WHEN (NEW.agent_id = 'late')";
    let hold = Hold::begin(&service.pool, late).await;
    let settle = async |client: Client, agent: &str| {
        client.post(USAGE, &usage(agent, "s", 1)).await;
        client.post("/api/v1/settle", &json!({ "agent": agent, "serviceId": "s" })).await.status
    };
    let mut pollers = [("settlements", "settledAt"), ("events", "ts")]
        .map(|(list, moment)| Poller::new(service.client(), list, moment, OVERLAP_MS));
    let client = service.client();
    let late = tokio::spawn(async move { settle(client, "late").await });
    hold.has_one().await;
    // So that its date is a later one for certain.
    other.clock.advance_ms(1000);
    assert_eq!(settle(other.client(), "early").await, 200);
    for poller in &mut pollers {
        assert!(poller.poll().await > 0);
    }
    hold.release().await;
    assert_eq!(late.await.expect("a task"), 200);
    for poller in &mut pollers {
        assert_eq!(poller.poll().await, 1, "{}", poller.list);
    }
}
