//! A cell on Citus. Runs where `TEST_CITUS_URL` leads to a database of a coordinator with at least two workers, as a role that
//! may create schemas and move them, for example `postgres://postgres@localhost:5432/app?sslmode=disable`.

mod commands;
mod commits;

use std::path::Path;
use std::str::FromStr;

use agentpay_billing::store::{MIGRATOR, migrations};
use serde_json::{Value, json};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr};
use time::OffsetDateTime;

use crate::support::{
    Client, DataDir, Load, Process, Receiver, Tenant, findings, new_database, pool, run, setting, url, usage,
    wait_until,
};

/// A home cell on PostgreSQL and a cell on Citus with a schema of its own.
struct Deployment {
    dir: DataDir,
    schema: String,
    home_url: String,
    home: PgPool,
    /// Of the coordinator.
    cell: PgPool,
    options: PgConnectOptions,
}

/// `None` where there is no Citus.
async fn deployment() -> Option<Deployment> {
    let Ok(coordinator) = std::env::var("TEST_CITUS_URL") else {
        println!("skipped: TEST_CITUS_URL is unset");
        return None;
    };
    let schema = format!("cell_{}", uuid::Uuid::new_v4().simple());
    let (dir, home) = (DataDir::new(), new_database().await);
    std::fs::create_dir_all(dir.as_str()).expect("a directory");
    let options = PgConnectOptions::from_str(&coordinator).expect("TEST_CITUS_URL");
    let options = options.options([("search_path", schema.as_str())]);
    let (home_url, home, cell) = (url(&home), pool(&home), pool(&options));
    let deployment = Deployment { dir, schema, home_url, home, cell, options };
    deployment.write_file("citus = true");
    Some(deployment)
}

impl Deployment {
    fn file(&self) -> String {
        Path::new(self.dir.as_str()).join("cells.toml").to_str().expect("UTF-8").to_owned()
    }

    /// Writes CELLS_FILE, with a line of the cell on Citus.
    fn write_file(&self, line: &str) {
        let (home, coordinator) = (&self.home_url, std::env::var("TEST_CITUS_URL").expect("TEST_CITUS_URL"));
        let file = format!(
            "[[cell]]\nid = \"home\"\nurl = \"{home}\"\n\n[[cell]]\nid = \"eu\"\nurl = \"{coordinator}\"\n\
             schema = \"{}\"\n{line}\nweight = 1000\n",
            self.schema
        );
        std::fs::write(self.file(), file).expect("a file");
    }

    async fn command(&self, arguments: &[&str]) -> (i32, String) {
        self.command_with(arguments, &[]).await
    }

    async fn command_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
        let file = self.file();
        let output = run(arguments, &[&[("CELLS_FILE", file.as_str())], environment].concat()).await;
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        (output.status.code().expect("no signal"), text)
    }

    async fn add(&self) {
        for _ in 0..2 {
            let added = self.command(&["cells", "add", "eu", "--citus"]).await;
            assert_eq!(added, (0, "eu is the cell number 1\n".to_owned()));
        }
    }

    fn replica(&self, environment: &[(&str, &str)]) -> Process {
        let file = self.file();
        let own = [("CELLS_FILE", file.as_str()), ("WEBHOOK_ALLOW_PRIVATE", "true"), ("RATE_LIMIT", "false")];
        Process::start_with(&[&own, environment].concat(), 0)
    }

    /// The key of a new tenant in the cell on Citus.
    async fn tenant(&self, client: &Client) -> Tenant {
        wait_until(async || client.get("/api/v1/health/ready").await.json()["unavailableCells"].is_null()).await;
        let created = client.post("/api/v1/api-keys", &json!({ "label": "test" })).await.json();
        let id = created["tenantId"].as_str().expect("a tenant");
        let cell = sqlx::query_scalar("SELECT cell_id FROM tenant_cells WHERE tenant_id = $1").bind(id);
        let cell: String = cell.fetch_one(&self.home).await.expect("a cell");
        assert_eq!(cell, "eu");
        Tenant { key: Some(created["key"].as_str().expect("a key").to_owned()) }
    }

    async fn owner(&self) -> i32 {
        let owner = "SELECT DISTINCT nodeport FROM citus_shards WHERE table_name = 'tenants'::regclass";
        sqlx::query_scalar(owner).fetch_one(&self.cell).await.expect("an owner")
    }

    /// The node that has the schema.
    async fn node(&self) -> PgPool {
        pool(&self.options.clone().port(self.owner().await as u16))
    }

    /// Moves the schema to another worker, as the rebalancer of Citus does.
    async fn move_schema(&self) {
        let move_it = format!(
            "SELECT citus_schema_move('{}', nodename, nodeport, 'force_logical') FROM pg_dist_node
             WHERE shouldhaveshards AND nodeport <> {} ORDER BY nodeport LIMIT 1",
            self.schema,
            self.owner().await
        );
        self.cell.execute(AssertSqlSafe(move_it)).await.expect("a move");
    }

    /// Waits until the services use connections to the owner, and have used no others for a second. Idle ones are closed when
    /// they would be used.
    async fn is_followed(&self) {
        let owner = self.owner().await;
        let nodes = "SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards";
        let nodes: Vec<(String, i32)> = sqlx::query_as(nodes).fetch_all(&self.cell).await.expect("the nodes");
        for (host, port) in nodes {
            let node = pool(&self.options.clone().host(&host).port(port as u16));
            let used = "SELECT count(*) FROM pg_stat_activity
                WHERE application_name = 'agentpay-billing' AND state_change > now() - interval '1 s'";
            let count = async || sqlx::query_scalar::<_, i64>(used).fetch_one(&node).await.expect("a count");
            wait_until(async || (count().await > 0) == (port == owner)).await;
        }
    }

    /// The newest event, and the time.
    async fn newest_position(&self) -> (i64, OffsetDateTime) {
        let newest = "SELECT max(position), clock_timestamp() FROM event_runs";
        sqlx::query_as(newest).fetch_one(&self.cell).await.expect("a position")
    }

    async fn end(self) {
        assert_eq!(findings(&self.cell).await, Vec::<String>::new());
        let verified = self.command(&["cells", "verify"]).await;
        assert_eq!(verified.0, 0, "{}", verified.1);
        let drop = format!("DROP SCHEMA \"{}\" CASCADE", self.schema);
        self.cell.execute(AssertSqlSafe(drop)).await.expect("a clean cluster");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_works_on_citus() {
    let Some(deployment) = deployment().await else { return };
    let (code, text) = deployment.command(&["cells", "add", "eu"]).await;
    assert!(code == 1 && text.contains("--citus"), "{text}");
    deployment.add().await;
    let replica = deployment.replica(&[]);
    let tenant = deployment.tenant(&replica.client()).await;
    deployment.is_followed().await;
    operate(&tenant.client(&replica.client())).await;
    deployment.move_schema().await;
    deployment.is_followed().await;
    operate_again(&tenant.client(&replica.client())).await;
    drop(replica);
    deployment.end().await;
}

/// Each kind of write and read once.
async fn operate(client: &Client) {
    let receiver = Receiver::start().await;
    let post = async |path: &str, body: Value, status: u16| {
        let answer = client.post(&format!("/api/v1/{path}"), &body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        answer.json()
    };
    let hook =
        post("webhooks", json!({ "url": receiver.url, "events": ["usage.recorded", "usage.settled"] }), 201).await;
    let hook = format!("webhooks/{}", hook["id"].as_str().expect("an id"));
    for name in ["a", "b"] {
        post("services", json!({ "serviceId": name, "priceStroops": 3 }), 201).await;
    }
    let items = json!([{ "serviceId": "d", "priceStroops": 1 }, { "serviceId": "c", "priceStroops": 2 }, { "serviceId": "a", "priceStroops": 5 }]);
    post("services/bulk", json!({ "items": items }), 201).await;
    let services = client.get("/api/v1/services").await.json();
    let names: Vec<&str> = services["services"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["serviceId"].as_str().expect("an id"))
        .collect();
    assert_eq!(names, ["a", "b", "d", "c"], "{services}");
    post("services/b/disable", json!({}), 200).await;
    post("services/b/enable", json!({}), 200).await;
    let keyed = client.key("first");
    let first = keyed.post("/api/v1/usage", &usage("agent", "a", 7)).await;
    let again = keyed.post("/api/v1/usage", &usage("agent", "a", 7)).await;
    assert!(first.status == 201 && again.replayed && first.same(&again), "{} {}", first.text, again.text);
    assert_eq!(keyed.post("/api/v1/usage", &usage("agent", "a", 8)).await.status, 409);
    let items = [usage("agent", "a", 1), usage("agent", "b", 2), usage("other", "c", 3)];
    post("usage/bulk", json!({ "items": items }), 201).await;
    assert_eq!(post("settle", json!({ "agent": "agent", "serviceId": "a" }), 200).await["billedStroops"], 40);
    post("settle/bulk", json!({ "agent": "other" }), 200).await;
    assert_eq!(client.send("DELETE", "/api/v1/usage/agent/b", None).await.status, 200);
    wait_until(async || receiver.received().iter().any(|one| one.body.contains("usage.settled"))).await;
    post(&format!("{hook}/test"), json!({}), 200).await;
    post(&format!("{hook}/rotate-secret"), json!({}), 200).await;
    let hook = format!("/api/v1/{hook}");
    assert_eq!(client.send("PATCH", &hook, Some(r#"{"events":["usage.recorded"]}"#)).await.status, 200);
    assert_eq!(client.send("DELETE", &hook, None).await.status, 204);
    assert_eq!(client.send("DELETE", "/api/v1/services/d", None).await.status, 204);
    for path in [
        "stats",
        "events",
        "events/summary",
        "agents",
        "settlements",
        "usage/agent/a",
        "usage/export.json",
        "billing/total",
        "services/a/usage",
        "services/a/agents",
        "services/a/agents/top",
        "idempotency/first",
        "agents/agent/usage",
        "webhooks",
    ] {
        let answer = client.get(&format!("/api/v1/{path}")).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
    let stats = client.get("/api/v1/stats").await.json();
    assert_eq!((&stats["lifetimeRequests"], &stats["settlementsTotal"]), (&json!(13), &json!(2)), "{stats}");
}

/// After a move of the schema: what was stored is replayed, and what is new comes after it.
async fn operate_again(client: &Client) {
    let again = client.key("first").post("/api/v1/usage", &usage("agent", "a", 7)).await;
    assert!(again.status == 201 && again.replayed, "{}", again.text);
    for name in ["z", "y"] {
        let service = client.post("/api/v1/services", &json!({ "serviceId": name, "priceStroops": 1 })).await;
        assert_eq!(service.status, 201, "{}", service.text);
        assert_eq!(client.post("/api/v1/usage", &usage(&format!("new-{name}"), name, 1)).await.status, 201);
    }
    let services = client.get("/api/v1/services").await.json();
    let services =
        services["services"].as_array().expect("services").iter().map(|service| service["serviceId"].clone());
    assert_eq!(services.collect::<Vec<_>>(), ["a", "b", "c", "z", "y"]);
    let agents = client.get("/api/v1/agents").await.json();
    assert_eq!(agents["agents"], json!(["agent", "other", "new-z", "new-y"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_moves_under_load_loses_nothing_and_does_nothing_twice() {
    let Some(deployment) = deployment().await else { return };
    deployment.add().await;
    let replicas = [(); 2].map(|()| deployment.replica(&[("COMMIT_LANES", "2")]));
    let addresses = [replicas[0].address, replicas[1].address];
    let mut tenants = Vec::new();
    for replica in &replicas {
        tenants.push(deployment.tenant(&replica.client()).await);
    }
    Load::register_services(&replicas[1].client(), &tenants).await;
    let (operations, clients, seed) = (setting("CITUS_OPERATIONS", 6000), setting("CITUS_CLIENTS", 16), 11);
    let load = Load::start(0..operations, clients, seed, addresses, tenants.clone());
    let mut marks = Vec::new();
    for part in 1..=2 {
        load.reach(part * operations / 6, || {}).await;
        marks.push(deployment.newest_position().await);
        let acknowledged = load.acknowledged();
        deployment.move_schema().await;
        println!("{} operations during the move", load.acknowledged() - acknowledged);
    }
    let tally = load.end().await;
    println!("{tally}");
    for (position, moment) in marks {
        // A position is drawn after the time of its event.
        let behind = "SELECT count(*) FILTER (WHERE position <= $1), count(*) FROM event_runs
            WHERE recorded_at > $2 + interval '100 ms'";
        let behind = sqlx::query_as(behind).bind(position).bind(moment);
        let (behind, after): (i64, i64) = behind.fetch_one(&deployment.cell).await.expect("counts");
        assert!(behind == 0 && after > 0, "{behind} of {after}");
    }
    let repeated = Load::send_again(0..operations, clients, seed, addresses, tenants).end().await;
    assert_eq!(repeated.answered_like(&tally), tally.keyed());
    assert_eq!(repeated.replays - repeated.duplicates, tally.keyed());
    deployment.is_followed().await;
    tally.check(&[&deployment.cell], &replicas[0].client()).await;
    drop(replicas);
    deployment.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_on_a_distributed_schema() {
    let Some(deployment) = deployment().await else { return };
    deployment.add().await;
    let text = "-- A later migration; of several commands.\nCREATE TABLE later (id bigint PRIMARY KEY);\n\
                ALTER TABLE services ADD COLUMN later bigint;\nCOMMENT ON TABLE later IS 'a; b';\n\
                CREATE FUNCTION later() RETURNS bigint LANGUAGE sql AS $$ SELECT 1; SELECT 2; $$;\n";
    let text = AssertSqlSafe(text).into_sql_str();
    let later = Migration::new(9999, "expand later".into(), MigrationType::ReversibleUp, text, false);
    let text = "-- no-transaction\nCREATE INDEX CONCURRENTLY services_later ON services (later);\n\
                COMMENT ON INDEX services_later IS 'a';\n";
    let text = AssertSqlSafe(text).into_sql_str();
    let index = Migration::new(10_000, "expand index".into(), MigrationType::ReversibleUp, text, true);
    let migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().chain([later, index]).collect());
    let mut connection = PgConnection::connect_with(&deployment.options).await.expect("the coordinator");
    for _ in 0..2 {
        migrations::apply_from(&migrator, &mut connection).await.expect("a migration");
    }
    let difference = migrations::compare(&mut connection).await.expect("a comparison");
    assert_eq!((difference.pending.len(), difference.expansions), (0, vec![9999, 10_000]));
    let same_shard = "SELECT count(DISTINCT nodeport) FROM citus_shards
        WHERE table_name IN ('later'::regclass, 'services'::regclass)";
    assert_eq!(sqlx::query_scalar::<_, i64>(same_shard).fetch_one(&deployment.cell).await.expect("a count"), 1);
    deployment.end().await;
}
