//! What all tests share: one PostgreSQL, a database for each test, the service on a real socket, and a client.

mod authority;
mod browser;
mod cells;
mod client;
mod collector;
mod container;
mod data_dir;
mod failover;
mod foreign_clock;
mod forwarder;
mod hold;
mod load;
mod logged;
mod operation;
mod pooler;
mod postgres;
mod process;
mod proxy;
mod read_only;
mod receiver;
mod silent_server;
mod socket;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentpay_billing::app::{App, Entrance};
use agentpay_billing::cell::CellJobs;
use agentpay_billing::clock::Clock;
use agentpay_billing::jobs::janitor::Janitor;
use agentpay_billing::jobs::sample_history::HistorySampler;
use agentpay_billing::jobs::verifier::Verifier;
use agentpay_billing::jobs::watch_runtime_config::RuntimeConfigWatcher;
use agentpay_billing::jobs::webhooks::dispatcher::Dispatcher;
use agentpay_billing::runtime_config::SharedRuntimeConfig;
use agentpay_billing::settings::Settings;
use agentpay_billing::store::audit;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio_util::sync::CancellationToken;

pub use authority::{Authority, Issued};
pub use browser::{Browser, CHROMIUM_OPTIONS, chromium, new_profile, remove_profile};
pub use cells::{Cells, needs_one_cell};
pub use client::{Answer, Client, usage};
pub use collector::{Collector, Span};
pub use data_dir::{DataDir, SlowPrograms, is_alive};
pub use failover::LossyFailover;
pub use foreign_clock::foreign_clock;
pub use forwarder::Forwarder;
pub use hold::{Hold, of_agent};
pub use load::{Load, Pace, Tenant};
pub use logged::Logged;
pub use pooler::Pooler;
pub use postgres::{SETTINGS as SERVER_SETTINGS, empty_database, new_database, program, url};
pub use process::{Process, binary, exit, free_port, kill, run, run_program, signal};
pub use proxy::{Moment, Proxy};
pub use read_only::ReadOnly;
pub use receiver::{Behaviour, Received, Receiver};
pub use silent_server::SilentServer;
pub use socket::{End, Head, Socket};
pub use tally::Tally;

/// A service in the process of the test.
pub struct Service {
    pub address: SocketAddr,
    pub clock: Clock,
    pub janitor: Janitor,
    pub verifier: Verifier,
    pub dispatcher: Dispatcher,
    pub config_watcher: RuntimeConfigWatcher,
    pub history_sampler: HistorySampler,
    pub runtime_config: SharedRuntimeConfig,
    pub pool: PgPool,
    /// The jobs of each cell.
    pub jobs: Vec<CellJobs>,
    /// If TEST_CELLS is set: the cells of the service.
    cells: Option<Arc<Cells>>,
}

impl Service {
    /// Starts a service on a new database.
    pub async fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_on(new_database().await, environment).await
    }

    pub async fn start_on(database: PgConnectOptions, environment: &[(&str, &str)]) -> Self {
        Self::start_with(database, environment, |_| {}).await
    }

    /// Starts a service with limits that a test can reach, and that are no environment variables.
    pub async fn start_limited(environment: &[(&str, &str)], limit: impl FnOnce(&mut Settings)) -> Self {
        Self::start_with(new_database().await, environment, limit).await
    }

    /// Another replica, with the usual limits, for what a test prepares and verifies. The limits of `self` may be too
    /// short for that on a busy machine.
    pub async fn beside(&self) -> Self {
        Self::start_on((*self.pool.connect_options()).clone(), &[]).await
    }

    async fn start_with(
        database: PgConnectOptions,
        environment: &[(&str, &str)],
        limit: impl FnOnce(&mut Settings),
    ) -> Self {
        // Most tests send more than sixty requests per minute, so only tests of the rate limiter switch it on.
        // A background verification would take part in tests of locks.
        let defaults = [("RATE_LIMIT", "off"), ("VERIFY_INTERVAL_MS", "0")];
        let cells = Cells::around(&database, environment).await;
        let file = cells.as_ref().map(|cells| ("CELLS_FILE", cells.file()));
        let environment: Vec<&(&str, &str)> = environment.iter().chain(&defaults).chain(&file).collect();
        let read = |name: &str| environment.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        let mut settings = Settings::read(read, false).expect("settings");
        settings.port = 0;
        // Tests hold commits up, and a busy machine may need a while for the next step.
        settings.committer.statement_limit = settings.api.request_timeout / 2;
        limit(&mut settings);
        // Shows errors of the service in the output of the test that fails.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(std::io::stderr).try_init();
        let clock = Clock::default();
        let entrance = Entrance::open(&settings).await.expect("a port");
        let app = App::start(entrance, &settings, database.clone(), clock.clone(), CancellationToken::new());
        let app = app.await.expect("the service starts");
        let (address, config_watcher) = (app.address, app.config_watcher.clone());
        let jobs = app.cells.clone();
        let CellJobs { janitor, verifier, dispatcher } = jobs[0].clone();
        let (runtime_config, history_sampler) = (app.runtime_config.clone(), app.history_sampler.clone());
        tokio::spawn(app.run());
        let pool = pool(&database);
        if cells.is_some() {
            let client = Client::new(address);
            let is_whole = async || !client.get("/api/v1/health/ready").await.text.contains("unavailableCells");
            wait_until(is_whole).await;
        }
        Self {
            address,
            clock,
            janitor,
            verifier,
            dispatcher,
            config_watcher,
            history_sampler,
            runtime_config,
            pool,
            jobs,
            cells,
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// A client of a new tenant. Only where the operator needs no key.
    pub async fn tenant(&self) -> Client {
        let created = self.client().post("/api/v1/api-keys", &serde_json::json!({ "label": "l" })).await.json();
        self.client().with("x-api-key", created["key"].as_str().expect("a key"))
    }

    /// All databases of the service.
    pub fn pools(&self) -> Vec<&PgPool> {
        let others = self.cells.iter().flat_map(|cells| cells.cells.iter().skip(1).map(|cell| &cell.pool));
        std::iter::once(&self.pool).chain(others).collect()
    }

    /// Selects one number from the database; the sum if there are several.
    pub async fn number(&self, sql: &'static str) -> i64 {
        match &self.cells {
            Some(cells) => cells.numbers(sql).await.into_iter().sum(),
            None => self.number_at_home(sql).await,
        }
    }

    /// Selects one number from the home cell.
    pub async fn number_at_home(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect(sql)
    }

    /// The variable that names the cells, for a process with the same ones.
    pub fn cells_file(&self) -> Option<(&str, &str)> {
        self.cells.as_ref().map(|cells| ("CELLS_FILE", cells.file()))
    }

    /// The metrics, those of the home cell without its label.
    pub async fn metrics(&self) -> String {
        let mut metrics = self.client().get("/api/v1/metrics").await.text;
        for label in ["{cell=\"home\"}", ",cell=\"home\"", "cell=\"home\","] {
            metrics = metrics.replace(label, "");
        }
        metrics
    }

    /// Runs the janitor of each cell once.
    pub async fn run_janitors(&self) {
        for jobs in &self.jobs {
            jobs.janitor.run_once().await.expect("a round");
        }
    }

    /// Runs the dispatcher of each cell once.
    pub async fn run_dispatchers(&self) {
        for jobs in &self.jobs {
            jobs.dispatcher.run_once().await.expect("a run");
        }
    }

    /// One metric, over a connection that is closed again.
    pub async fn metric(&self, name: &str) -> i64 {
        let mut socket = Socket::connect(self.address).await;
        socket.send("GET /api/v1/metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let (_, text) = socket.answer().await;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect("the metric");
        line.parse().expect("a number")
    }

    /// Makes all idempotency records older. PostgreSQL's own clock decides what is deleted, and tests cannot move it.
    pub async fn age_records(&self, ms: i64) {
        for pool in self.pools() {
            sqlx::query(
                "UPDATE idempotency_keys
                 SET created_at = created_at - $1 * interval '1 ms', expires_at = expires_at - $1 * interval '1 ms'",
            )
            .bind(ms)
            .execute(pool)
            .await
            .expect("older records");
        }
        // The records move behind the janitor's cursors.
        for jobs in &self.jobs {
            *jobs.janitor.cursors.lock().expect("cursors") = Default::default();
        }
    }

    /// Waits until `count` connections of this service wait for a lock.
    pub async fn blocked(&self, count: i64) {
        wait_until(async || self.number(BLOCKED).await >= count).await;
    }

    /// Makes writes of the agent `slow` take an hour, or as long as a statement may, until [`Service::speed_up`].
    pub async fn slow_down(&self) {
        let rule = "CREATE TABLE slow AS SELECT true AS is_slow;
            CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF EXISTS (SELECT FROM slow) THEN PERFORM pg_sleep(3600); END IF; RETURN NEW; END $$;
            CREATE TRIGGER slow_down BEFORE INSERT OR UPDATE ON usage_counters
            FOR EACH ROW WHEN (NEW.agent_id = 'slow') EXECUTE FUNCTION slow_down()";
        sqlx::raw_sql(rule).execute(&self.pool).await.expect("a trigger");
    }

    pub async fn speed_up(&self) {
        sqlx::raw_sql("DELETE FROM slow").execute(&self.pool).await.expect("a deletion");
    }

    /// Waits until `depth` requests wait for a lane.
    pub async fn queued(&self, depth: usize) {
        let client = self.client();
        let is_queued = async || {
            let report = client.get("/api/v1/health/deep").await.json();
            report["checks"][2]["detail"]["depth"] == depth
        };
        wait_until(is_queued).await;
    }

    /// Sends usage records that form one batch, if the service has one lane. Returns their responses in order.
    pub async fn record_together(&self, records: Vec<(Client, serde_json::Value)>) -> Vec<Answer> {
        let posts = records.into_iter().map(|(client, record)| (client, "/api/v1/usage", record));
        self.post_together(posts.collect()).await
    }

    /// Like [`Self::record_together`], for POST requests to any path. They queue behind another request that is
    /// held up.
    pub async fn post_together(&self, posts: Vec<(Client, &'static str, serde_json::Value)>) -> Vec<Answer> {
        let hold = Hold::begin(&self.pool, &of_agent("occupant")).await;
        let send = |client: Client, path, body| tokio::spawn(async move { client.post(path, &body).await });
        let occupant = send(self.client(), "/api/v1/usage", usage("occupant", "s", 1));
        hold.has_one().await;
        let count = posts.len();
        let sent: Vec<_> = posts.into_iter().map(|(client, path, body)| send(client, path, body)).collect();
        self.queued(count).await;
        hold.release().await;
        assert_eq!(occupant.await.expect("a task").status, 201);
        let mut answers = Vec::new();
        for answer in sent {
            answers.push(answer.await.expect("a task"));
        }
        answers
    }

    /// Checks all sums in the database.
    pub async fn verify(&self) {
        if let Some(cells) = &self.cells {
            cells.verify().await;
        }
        verify(&self.pool).await;
    }
}

/// Stores `count` records of a caller without requests. They are `age_ms` old, a microsecond apart, and have responses
/// of `bytes`.
pub async fn store_records(pool: &PgPool, caller: &str, count: i64, age_ms: i64, bytes: i32) {
    sqlx::query(
        "WITH stored AS (
             INSERT INTO idempotency_keys AS record
                 (caller, key, method, path, request_hash, status, response, request_id, attempt_id, created_at, expires_at)
             SELECT $1, gen_random_uuid()::text, 'POST', '/', sha256(''), 201, repeat('x', $4), 'r', 1,
                    moment, moment + interval '1 day'
             FROM generate_series(1, $2) AS number,
                  LATERAL (SELECT now() - $3 * interval '1 ms' + number * interval '1 us' AS moment) AS age
             RETURNING idempotency_record_bytes(caller, key, path, request_id, response) AS bytes
         )
         INSERT INTO caller_totals AS total (caller, shard, records, bytes)
         SELECT $1, 0, count(*), sum(bytes) FROM stored
         ON CONFLICT (caller, shard) DO UPDATE
         SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes",
    )
    .bind(caller)
    .bind(count)
    .bind(age_ms as f64)
    .bind(bytes)
    .execute(pool)
    .await
    .expect("records");
}

/// A pool of direct connections to a database.
pub fn pool(database: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(4).connect_lazy_with(database.clone())
}

pub async fn verify(pool: &PgPool) {
    assert_eq!(findings(pool).await, Vec::<String>::new());
}

/// Everything in the database that does not add up.
pub async fn findings(pool: &PgPool) -> Vec<String> {
    let mut connection = pool.acquire().await.expect("connection");
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let collect = async {
        let mut found = Vec::new();
        while let Some(finding) = receiver.recv().await {
            found.push(finding);
        }
        found
    };
    let (audited, found) = tokio::join!(audit::everything(&mut connection, sender), collect);
    audited.expect("audit");
    found
}

/// Counts connections that wait for a lock.
pub const BLOCKED: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Counts statements that [`Service::slow_down`] or a [`Hold`] delays.
pub const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";

/// A number that the environment sets for a long test.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect(name))
}

/// How long a test waits for a condition. Long, because the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, and fails after [`LIMIT`]. Returns how long it took.
pub async fn wait_until(mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LIMIT, "it did not happen within {LIMIT:?}");
        pause().await;
    }
    began.elapsed()
}

/// The pause between two polls, for loops in spawned tasks. [`wait_until`] with a closure that borrows is not `Send`.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}
