//! The move of a tenant between two cells while it is used, with the mover killed after each of its steps: nothing is lost or
//! done twice, and every stored response is replayed where the tenant lives.

mod outages;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agentpay_billing::domain::caller::Tenant;
use agentpay_billing::domain::cell::{CellId, Residence};
use agentpay_billing::jobs::tenant_move::{MoveError, Step, TenantMove};
use agentpay_billing::jobs::webhooks::dispatcher::Dispatcher;
use agentpay_billing::settings::cells::CellSettings;
use agentpay_billing::store::{cells, tenant_moves};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::support::{Answer, Behaviour, Client, Receiver, Service, new_database, pause, usage, wait_until};

const CLIENTS: u64 = 8;
const USAGE: &str = "/api/v1/usage";
const SETTINGS: &[(&str, &str)] =
    &[("WEBHOOK_ALLOW_PRIVATE", "true"), ("COMMIT_LANES", "2"), ("JANITOR_INTERVAL_MS", "3600000")];

/// The code of an error, and nothing for another response.
fn code(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap_or_default().to_owned()
}

/// Two cells, each with a service, and a tenant that begins in the first.
struct Cells {
    settings: Vec<CellSettings>,
    services: Vec<Service>,
    tenant: Tenant,
    key: String,
}

impl Cells {
    async fn start() -> Self {
        let mut settings = Vec::new();
        for id in ["home", "eu"] {
            let id = CellId::parse(id).expect("an id");
            settings.push(CellSettings { id, database: new_database().await, weight: 1, citus_schema: None });
        }
        for cell in &settings {
            // Parallel workers return rows in any order, also of small tables.
            let name = cell.database.get_database().expect("a name");
            let parallel = ["min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"]
                .map(|setting| format!("ALTER DATABASE {name} SET {setting} = 0"));
            let mut connection = PgConnection::connect_with(&cell.database).await.expect("a cell");
            sqlx::raw_sql(AssertSqlSafe(parallel.join(";"))).execute(&mut connection).await.expect("settings");
        }
        let mut home = PgConnection::connect_with(&settings[0].database).await.expect("home");
        let mut member = PgConnection::connect_with(&settings[1].database).await.expect("eu");
        cells::found(&mut home, &settings[0].id).await.expect("the home cell");
        cells::add(&mut home, &mut member, &settings[1].id, None).await.expect("a cell");
        let mut services = Vec::new();
        for cell in &settings {
            services.push(Service::start_on(cell.database.clone(), SETTINGS).await);
        }
        let made = services[0].client().post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        let (tenant, key) = (text("tenantId"), text("key"));
        // Each service here has one cell, and finds the key in it.
        sqlx::query("INSERT INTO tenants (tenant_id, residence) VALUES ($1, 'elsewhere')")
            .bind(&tenant)
            .execute(&services[1].pool)
            .await
            .expect("the tenant");
        let copied = "INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at)
            VALUES ($1, left($2, 12), sha256($2::bytea), 'l', now())";
        sqlx::query(copied).bind(&tenant).bind(&key).execute(&services[1].pool).await.expect("the key");
        sqlx::query("INSERT INTO totals (tenant_id, service_id, shard, api_keys) VALUES ($1, '', 0, 1)")
            .bind(&tenant)
            .execute(&services[1].pool)
            .await
            .expect("its number");
        Self { settings, services, tenant: Tenant::from_stored(tenant), key }
    }

    fn client(&self, cell: usize) -> Client {
        self.services[cell].client().with("x-api-key", &self.key)
    }

    async fn home(&self) -> PgConnection {
        PgConnection::connect_with(&self.settings[0].database).await.expect("home")
    }

    /// The cell that the directory names.
    async fn lives_in(&self) -> usize {
        usize::from(tenant_moves::cell_of(&mut self.home().await, &self.tenant).await.expect("a directory").is_some())
    }

    async fn find(&self, to: usize) -> TenantMove<'_> {
        let found = TenantMove::find(&self.settings, &self.tenant, Some(&self.settings[to].id)).await;
        found.expect("a move").expect("not there yet")
    }

    /// Runs the move until after `last`, and kills it there.
    async fn move_until(&self, to: usize, last: Step) {
        let found = self.find(to).await;
        let reached = AtomicBool::new(false);
        let watch = async |step| {
            if step == last {
                reached.store(true, Ordering::Release);
                std::future::pending::<()>().await;
            }
        };
        let is_reached = wait_until(async || reached.load(Ordering::Acquire));
        tokio::select! {
            ended = found.run(&|_| {}, watch) => panic!("it ended: {ended:?}"),
            _ = is_reached => {}
        }
    }

    async fn move_to(&self, to: usize) {
        let moved = self.find(to).await.run(&|_| {}, async |_| {}).await.expect("a move");
        println!("moved {moved:?}");
    }

    /// All sums add up in both cells, and the tenant has rows in one only.
    async fn verify(&self, cell: usize) {
        for (number, service) in self.services.iter().enumerate() {
            service.verify().await;
            if number != cell {
                let rows = "SELECT (SELECT count(*) FROM usage_counters) + (SELECT count(*) FROM idempotency_keys)
                    + (SELECT count(*) FROM event_runs) + (SELECT count(*) FROM webhooks) + (SELECT count(*) FROM outbox)
                    + (SELECT count(*) FROM webhook_deliveries) + (SELECT count(*) FROM settlements)
                    + (SELECT count(*) FROM caller_totals) + (SELECT count(*) FROM services)";
                assert_eq!(service.number(rows).await, 0);
            }
        }
        assert!(tenant_moves::list(&mut self.home().await).await.expect("moves").is_empty());
    }
}

/// The path, the body and the response under each key.
type Answers = BTreeMap<String, (&'static str, Value, Answer)>;

/// Clients that follow the directory, and repeat each operation until it is acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    answers: Arc<Mutex<Answers>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(cells: &Cells, place: &Arc<AtomicU64>) -> Self {
        let (stop, acknowledged, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let clients = (0..CLIENTS).map(|client| {
            let http = [cells.client(0), cells.client(1)];
            let (stop, acknowledged, place) = (stop.clone(), acknowledged.clone(), place.clone());
            let answers: Arc<Mutex<Answers>> = Arc::clone(&answers);
            tokio::spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Acquire) {
                    number += 1;
                    let agent = format!("agent-{}", number % 7);
                    let (path, body) = match number % 10 {
                        0 => ("/api/v1/settle/bulk", json!({ "agent": agent })),
                        5 => ("/api/v1/settle", json!({ "agent": agent, "serviceId": "s" })),
                        _ => (USAGE, usage(&agent, "s", 1)),
                    };
                    let key = format!("{client}-{number}");
                    let answer = loop {
                        let cell = place.load(Ordering::Acquire) as usize;
                        let answer = http[cell].key(&key).post(path, &body).await;
                        match (answer.status, code(&answer).as_str()) {
                            (200 | 201, _) => break answer,
                            (503, _) => pause().await,
                            _ => panic!("{answer:?}"),
                        }
                    };
                    acknowledged.fetch_add(1, Ordering::AcqRel);
                    answers.lock().await.insert(key, (path, body, answer));
                    // Without it, a move on a busy machine has ever more rows to copy.
                    pause().await;
                }
            })
        });
        let clients = clients.collect();
        Self { stop, acknowledged, answers, clients }
    }

    /// Waits until so many more operations are acknowledged.
    async fn go_on(&self, count: u64) {
        let goal = self.acknowledged.load(Ordering::Acquire) + count;
        wait_until(async || self.acknowledged.load(Ordering::Acquire) >= goal).await;
    }

    async fn end(self) -> Answers {
        self.stop.store(true, Ordering::Release);
        for client in self.clients {
            client.await.expect("a client");
        }
        self.answers.lock().await.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_moves_under_load_and_the_mover_may_die_after_each_step() {
    let cells = Cells::start().await;
    let receiver = Receiver::start().await;
    let registered = json!({ "serviceId": "s", "priceStroops": 3 });
    assert_eq!(cells.client(0).post("/api/v1/services", &registered).await.status, 201);
    let webhook = json!({ "url": receiver.url, "events": ["usage.settled"] });
    assert_eq!(cells.client(0).post("/api/v1/webhooks", &webhook).await.status, 201);
    let place = Arc::<AtomicU64>::default();
    let load = Load::start(&cells, &place);
    let mut cell = 0;
    for last in Step::ALL {
        load.go_on(100).await;
        let to = 1 - cell;
        cells.move_until(to, last).await;
        // Until the target has committed, the move can be undone, and the tenant is written in the source again.
        let undone = TenantMove::find(&cells.settings, &cells.tenant, None).await;
        if last != Step::Deleted {
            let undone = undone.expect("a move").expect("not there").undo().await;
            match last {
                Step::Committed | Step::Switched => assert!(matches!(undone, Err(MoveError::Arrived(_))), "{undone:?}"),
                _ => {
                    undone.expect("undone");
                    load.go_on(50).await;
                    cells.move_until(to, last).await;
                }
            }
            cells.move_to(to).await;
        }
        assert_eq!(cells.lives_in().await, to);
        cell = to;
        place.store(cell as u64, Ordering::Release);
        load.go_on(50).await;
    }
    let answers = load.end().await;
    cells.verify(cell).await;
    // Nothing is lost or done twice.
    let of = |path: &str| answers.values().filter(|(own, ..)| *own == path).collect::<Vec<_>>();
    let home = &cells.services[cell];
    let recorded = home.number("SELECT sum(outstanding + settled)::bigint FROM usage_counters").await;
    assert_eq!(recorded, of(USAGE).len() as i64);
    let billed: i64 =
        of("/api/v1/settle").iter().filter_map(|(.., answer)| answer.json()["billedStroops"].as_i64()).sum();
    let bulk = of("/api/v1/settle/bulk");
    let bulk: i64 = bulk.iter().filter_map(|(.., answer)| answer.json()["totalBilledStroops"].as_i64()).sum();
    assert_eq!(home.number("SELECT sum(billed_stroops)::bigint FROM settlements").await, billed + bulk);
    // Every key replays byte for byte where the tenant lives, and nowhere else.
    for (key, (path, body, answer)) in answers.iter().step_by(7) {
        let again = cells.client(cell).key(key).post(path, body).await;
        assert!(again.replayed && again.same(answer), "{key}: {again:?}, {answer:?}");
        let elsewhere = cells.client(1 - cell).key(key).post(path, body).await;
        assert_eq!(elsewhere.status, 503, "{elsewhere:?}");
    }
    // Each settled event was delivered once.
    let events = "SELECT count(*) FROM webhook_deliveries WHERE type = 'usage.settled'";
    wait_until(async || {
        home.number("SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM webhook_queues)").await == 0
    })
    .await;
    let received = receiver.received();
    let mut ids: Vec<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!(ids.len() as i64, home.number(events).await);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), received.len(), "a delivery was sent twice");
    cells.verify(cell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_cursors_go_on_in_the_other_cell() {
    let cells = Cells::start().await;
    let here = cells.client(0);
    // The sequences of the other cell are behind.
    for number in 0..30 {
        assert_eq!(here.post(USAGE, &usage(&format!("a{number}"), "s", 1)).await.status, 201);
        assert_eq!(here.post("/api/v1/settle/bulk", &json!({ "agent": format!("a{number}") })).await.status, 200);
    }
    let page = |client: Client, path: String| async move { client.get(&path).await };
    let events = page(here.clone(), "/api/v1/events?limit=10".to_owned()).await.json();
    let agents = page(here.clone(), "/api/v1/agents".to_owned()).await;
    let export = page(here.clone(), "/api/v1/usage/export.csv".to_owned()).await;
    cells.move_to(1).await;
    let there = cells.client(1);
    assert!(page(there.clone(), "/api/v1/agents".to_owned()).await.same(&agents));
    assert!(page(there.clone(), "/api/v1/usage/export.csv".to_owned()).await.same(&export));
    assert_eq!(page(there.clone(), "/api/v1/events?limit=10".to_owned()).await.json(), events);
    for number in 30..35 {
        assert_eq!(there.post(USAGE, &usage(&format!("a{number}"), "s", 1)).await.status, 201);
    }
    let order = page(there.clone(), "/api/v1/agents?limit=100".to_owned()).await.json();
    let names: Vec<&str> = order["agents"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let expected: Vec<String> = (0..35).map(|number| format!("a{number}")).collect();
    assert_eq!(names, expected, "{order}");
    cells.verify(1).await;
    // Back home, where the numbers are lower, the same holds.
    cells.move_to(0).await;
    assert_eq!(here.post(USAGE, &usage("a35", "s", 1)).await.status, 201);
    let order = page(here.clone(), "/api/v1/agents?limit=100".to_owned()).await.json();
    assert_eq!(order["agents"].as_array().and_then(|agents| agents.last()), Some(&json!("a35")), "{order}");
    let ordered = "SELECT count(*) FROM usage_counters AS one JOIN usage_counters AS next ON next.pair_id > one.pair_id
        WHERE substr(next.agent_id, 2)::int < substr(one.agent_id, 2)::int";
    assert_eq!(cells.services[0].number(ordered).await, 0);
    cells.verify(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_says_how_far_a_move_got() {
    let cells = Cells::start().await;
    assert_eq!(cells.client(0).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    // A move that is run again copies again.
    for (last, step) in [
        (Step::Begun, "copying"),
        (Step::Fenced, "fenced"),
        (Step::DeliveriesStopped, "copying"),
        (Step::Committed, "copied"),
        (Step::Switched, "switched"),
    ] {
        cells.move_until(1, last).await;
        let moves = tenant_moves::list(&mut cells.home().await).await.expect("moves");
        assert_eq!(moves.iter().map(|unfinished| unfinished.step.as_str()).collect::<Vec<_>>(), [step], "{last:?}");
    }
    cells.move_to(1).await;
    cells.verify(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_differs_is_undone() {
    let cells = Cells::start().await;
    assert_eq!(cells.client(0).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    // The target changes what it gets.
    sqlx::raw_sql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.outstanding := 5; RETURN NEW; END $$;
         CREATE TRIGGER spoil BEFORE INSERT ON usage_counters FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    .execute(&cells.services[1].pool)
    .await
    .expect("a trigger");
    let found = cells.find(1).await;
    let error = found.run(&|_| {}, async |_| {}).await.expect_err("a refusal").to_string();
    assert!(error.starts_with("the copy differs from the source: usage_counters ("), "{error}");
    assert!(error.ends_with("; the tenant stays in home"), "{error}");
    assert_eq!(cells.client(0).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    cells.verify(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_delivery_is_begun_in_a_cell_that_the_tenant_leaves() {
    let cells = Cells::start().await;
    let receiver = Receiver::start().await;
    let webhook = json!({ "url": receiver.url, "events": ["*"] });
    assert_eq!(cells.client(0).post("/api/v1/webhooks", &webhook).await.status, 201);
    let mut home = cells.home().await;
    tenant_moves::stop_deliveries(&mut home, &cells.tenant, 1).await.expect("a residence");
    assert_eq!(cells.client(0).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    let service = &cells.services[0];
    // The event is expanded, and its delivery is due.
    wait_until(async || service.number("SELECT count(*) FROM webhook_queues").await == 1).await;
    let _turn = service.dispatcher.turn.clone().lock_owned().await;
    let dispatcher = Dispatcher { turn: Arc::default(), ..service.dispatcher.clone() };
    for _ in 0..3 {
        dispatcher.run_once().await.expect("a run");
        assert_eq!(service.number("SELECT count(*) FROM webhook_queues WHERE leased_until IS NOT NULL").await, 0);
    }
    tenant_moves::set_residence(&mut home, &cells.tenant, Residence::Here, 2).await.expect("a residence");
    wait_until(async || dispatcher.run_once().await.is_ok() && receiver.received().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_deliveries_are_sent_by_the_other_cell() {
    let cells = Cells::start().await;
    let receiver = Receiver::start().await;
    receiver.usually(Behaviour::Status(503));
    let webhook = json!({ "url": receiver.url, "events": ["*"] });
    assert_eq!(cells.client(0).post("/api/v1/webhooks", &webhook).await.status, 201);
    assert_eq!(cells.client(0).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    let failed = "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending' AND attempts > 0";
    wait_until(async || cells.services[0].number(failed).await == 1).await;
    cells.move_to(1).await;
    // The other cell may have made another attempt already.
    assert_eq!(cells.services[1].number(failed).await, 1);
    receiver.usually(Behaviour::Status(200));
    let due = "UPDATE webhook_deliveries SET next_attempt_at = now(); UPDATE webhook_queues SET due_at = now()";
    sqlx::raw_sql(due).execute(&cells.services[1].pool).await.expect("a due delivery");
    let done = "SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered' AND attempts > 1";
    wait_until(async || cells.services[1].number(done).await == 1).await;
    let ids: Vec<String> = receiver.received().iter().map(|one| one.header("webhook-id").to_owned()).collect();
    assert!(ids.len() > 1 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    cells.verify(1).await;
}
