//! What changes between the reading and the writing of a commit: the one that comes second sees what the first one did,
//! and nothing is lost or counted twice. A proxy holds up the write of the first replica while the second one goes ahead.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Answer, Client, Moment, Process, Proxy, Service, new_database, pool, usage, verify};

const USAGE: &str = "/api/v1/usage";
const SETTLE: &str = "/api/v1/settle";
const PAIR: &str = "/api/v1/usage/a/s";

fn pair() -> Value {
    json!({ "agent": "a", "serviceId": "s" })
}

struct Race {
    proxy: Proxy,
    slow: Service,
    fast: Service,
}

impl Race {
    /// The pair a/s has 2 outstanding requests at 5 stroops.
    async fn prepare() -> Self {
        let database = new_database().await;
        let proxy = Proxy::start(&database).await;
        let environment = [("COMMIT_LANES", "1"), ("ALLOW_ADMIN_RESET", "on")];
        let mut slow = Service::start_on(proxy.options(), &environment).await;
        slow.pool = pool(&database);
        let fast = Service::start_on(database, &environment).await;
        price(&fast.client(), 5).await;
        assert_eq!(total(&slow.client(), 2).await, 2);
        Self { proxy, slow, fast }
    }

    /// Sends a request to the slow replica, which has read all it needs and is about to write when this returns.
    async fn begin(&self, client: Client, method: &'static str, path: &'static str, body: Value) -> JoinHandle<Answer> {
        // A lane that lost a race locks at once for a while. Let it read first again.
        for _ in 0..20 {
            total_of(&self.slow.client(), "calm", 1).await;
        }
        self.proxy.take_errors();
        self.proxy.at_next_commit(Moment::Held);
        let answer = tokio::spawn(async move { client.send(method, path, Some(&body.to_string())).await });
        self.proxy.happened().await;
        answer
    }

    /// Lets the slow replica write, which has to fail first.
    async fn end(&self, answer: JoinHandle<Answer>) -> Answer {
        self.proxy.release();
        let answer = answer.await.expect("a client");
        assert!(!self.proxy.take_errors().is_empty(), "nothing was taken back: {answer:?}");
        answer
    }

    /// Nothing but these requests are outstanding, and everything adds up.
    async fn leaves(self, outstanding: i64) {
        assert_eq!(self.slow.client().get(PAIR).await.json()["total"], outstanding);
        self.slow.verify().await;
    }
}

async fn price(client: &Client, price_stroops: i64) {
    let service = json!({ "serviceId": "s", "priceStroops": price_stroops });
    assert!([200, 201].contains(&client.post("/api/v1/services", &service).await.status));
}

async fn total(client: &Client, requests: i64) -> Value {
    total_of(client, "a", requests).await
}

async fn total_of(client: &Client, agent: &str, requests: i64) -> Value {
    let answer = client.post(USAGE, &usage(agent, "s", requests)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["total"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_that_was_written_meanwhile_is_read_again() {
    let race = Race::prepare().await;
    let record = race.begin(race.slow.client(), "POST", USAGE, usage("a", "s", 1)).await;
    assert_eq!(total(&race.fast.client(), 10).await, 12);
    assert_eq!(race.end(record).await.json()["total"], 13);
    let settle = race.begin(race.slow.client(), "POST", SETTLE, pair()).await;
    assert_eq!(race.fast.client().post(SETTLE, &pair()).await.json()["requests"], 13);
    assert_eq!(race.end(settle).await.json()["requests"], 0);
    race.leaves(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_another_replica_made_meanwhile_is_read_again() {
    let race = Race::prepare().await;
    let record = race.begin(race.slow.client(), "POST", USAGE, usage("new", "s", 1)).await;
    let made = race.fast.client().post(USAGE, &usage("new", "s", 10)).await;
    assert_eq!(made.json()["total"], 10);
    assert_eq!(race.end(record).await.json()["total"], 11);
    race.leaves(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_taken_meanwhile_is_replayed_or_refused() {
    let race = Race::prepare().await;
    for (key, requests, status) in [("same", 1, 201), ("other", 9, 409)] {
        let record = race.begin(race.slow.client().key(key), "POST", USAGE, usage("a", "s", requests)).await;
        let made = race.fast.client().key(key).post(USAGE, &usage("a", "s", 1)).await;
        assert_eq!((made.status, made.replayed), (201, false));
        let answer = race.end(record).await;
        assert_eq!((answer.status, answer.replayed), (status, status == 201), "{answer:?}");
        assert!(status != 201 || answer.same(&made));
    }
    race.leaves(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_that_changed_meanwhile_are_those_that_hold() {
    let race = Race::prepare().await;
    let operator = race.fast.client();
    let settle = race.begin(race.slow.client(), "POST", SETTLE, pair()).await;
    price(&operator, 7).await;
    assert_eq!(race.end(settle).await.json()["billedStroops"], 14);
    let record = race.begin(race.slow.client(), "POST", USAGE, usage("a", "s", 1)).await;
    assert_eq!(operator.post("/api/v1/services/s/disable", &json!({})).await.status, 200);
    assert_eq!(race.end(record).await.error().1, "service_disabled");
    assert_eq!(operator.post("/api/v1/services/s/enable", &json!({})).await.status, 200);
    assert_eq!(total(&race.slow.client(), 3).await, 3);
    let settle = race.begin(race.slow.client(), "POST", "/api/v1/settle/bulk", json!({ "agent": "a" })).await;
    assert_eq!(operator.send("DELETE", "/api/v1/services/s", None).await.status, 204);
    let settled = race.end(settle).await.json();
    assert_eq!((&settled["items"][0]["requests"], &settled["totalBilledStroops"]), (&json!(3), &json!(0)));
    race.leaves(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_was_cleared_meanwhile_begins_at_zero_and_a_clearing_takes_all_there_is() {
    let race = Race::prepare().await;
    let record = race.begin(race.slow.client().key("k"), "POST", USAGE, usage("a", "s", 1)).await;
    assert_eq!(race.fast.client().send("DELETE", PAIR, None).await.json()["clearedTotal"], 2);
    assert_eq!(race.end(record).await.json()["total"], 1);
    let clear = race.begin(race.slow.client(), "DELETE", PAIR, Value::Null).await;
    assert_eq!(total(&race.fast.client(), 10).await, 11);
    assert_eq!(race.end(clear).await.json()["clearedTotal"], 11);
    race.leaves(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_read_before_a_reset_of_everything_is_written_after_it() {
    let race = Race::prepare().await;
    let reset = async || {
        let answer = race.fast.client().post("/api/v1/admin/reset", &json!({})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let record = race.begin(race.slow.client().key("k"), "POST", USAGE, usage("a", "s", 1)).await;
    reset().await;
    assert_eq!(race.end(record).await.json()["total"], 1);
    let settle = race.begin(race.slow.client(), "POST", SETTLE, pair()).await;
    reset().await;
    assert_eq!(race.end(settle).await.json()["requests"], 0);
    assert_eq!(total(&race.slow.client(), 2).await, 2);
    let clear = race.begin(race.slow.client(), "DELETE", PAIR, Value::Null).await;
    reset().await;
    assert_eq!(race.end(clear).await.status, 404);
    // Between the two the pair comes back, as often written as before.
    assert_eq!(total(&race.slow.client(), 2).await, 2);
    let record = race.begin(race.slow.client(), "POST", USAGE, usage("a", "s", 1)).await;
    reset().await;
    assert_eq!(total(&race.fast.client(), 10).await, 10);
    assert_eq!(race.end(record).await.json()["total"], 11);
    assert_eq!(race.slow.client().get("/api/v1/stats").await.json()["lifetimeRequests"], 11);
    race.leaves(11).await;
}

const PAIRS: usize = 40;
const WINDOW: usize = 25;

/// Each request names a window of the pairs, forwards or backwards; every tenth clears or settles some of them instead.
#[tokio::test(flavor = "multi_thread")]
async fn opposite_orders_of_overlapping_pairs_in_two_lanes_of_two_replicas_are_all_committed() {
    let database = new_database().await;
    let start = || Process::start_on(&database, &[("COMMIT_LANES", "2")]);
    let processes = [start(), start()];
    let clients = (0..8_usize).map(|number| {
        let client = processes[number % 2].client();
        tokio::spawn(async move {
            let mut recorded = 0;
            for round in 0..20_usize {
                let first = (number * 7 + round * 11) % PAIRS;
                let mut window: Vec<usize> = (first..first + WINDOW).map(|place| place % PAIRS).collect();
                if (number / 2 + round) % 2 == 1 {
                    window.reverse();
                }
                let client = client.key(&format!("{number}-{round}"));
                let name = |place: usize| (format!("agent-{}", place / 4), format!("s{}", place % 4));
                let (agent, service) = name(first);
                let answer = match (number + round) % 10 {
                    0 => client.post("/api/v1/settle/bulk", &json!({ "agent": agent })).await,
                    5 => client.send("DELETE", &format!("{USAGE}/{agent}/{service}"), None).await,
                    _ => {
                        recorded += WINDOW;
                        let items = window.iter().map(|place| usage(&name(*place).0, &name(*place).1, 1));
                        client.post("/api/v1/usage/bulk", &json!({ "items": items.collect::<Vec<_>>() })).await
                    }
                };
                assert!(matches!(answer.status, 200 | 201 | 404), "{answer:?}");
            }
            recorded
        })
    });
    let mut recorded = 0;
    for client in clients.collect::<Vec<_>>() {
        recorded += client.await.expect("a client");
    }
    let stats = processes[0].client().get("/api/v1/stats").await.json();
    assert_eq!(stats["lifetimeRequests"], recorded);
    verify(&pool(&database)).await;
}
