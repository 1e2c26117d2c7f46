//! A cell that is down hurts only its own tenants.

use std::time::Instant;

use agentpay_billing::local_postgres::LocalPostgres;
use agentpay_billing::store::MIGRATOR;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

use crate::support::{
    Cells, Client, DataDir, Forwarder, LIMIT, Load, Process, SERVER_SETTINGS, Service, Tenant, new_database, run,
    setting, usage, wait_until,
};

const TWO: [(&str, u32); 2] = [("home", 1), ("eu", 1)];
const THREE: [(&str, u32); 3] = [("home", 1), ("eu", 1), ("us", 1)];

/// Two or three cells, of which the one at `index` is reached through a forwarder.
async fn start_behind(cells: &[(&'static str, u32)], index: usize) -> (Cells, Forwarder) {
    let mut cells_of_test = Cells::start(cells).await;
    let forwarder = Forwarder::start(&cells_of_test.databases[index]).await;
    cells_of_test.databases[index] = forwarder.options();
    cells_of_test.write_file(cells);
    (cells_of_test, forwarder)
}

async fn unavailable(client: &Client) -> Value {
    client.get("/api/v1/health/ready").await.json()["unavailableCells"].clone()
}

#[tokio::test]
async fn a_frozen_cell_is_named_and_the_tenants_of_others_are_served_at_once() {
    let (cells, forwarder) = start_behind(&THREE, 1).await;
    let admin = [("CELLS_FILE", cells.file()), ("ADMIN_API_KEY", "admin"), ("REQUEST_TIMEOUT_MS", "5000")];
    let service = Service::start_on(cells.home(), &admin).await;
    let client = service.client().with("x-api-key", "admin");
    let clients = {
        let anonymous = service.client();
        let mut clients = vec![None; 3];
        while clients.iter().any(Option::is_none) {
            let created = client.post("/api/v1/api-keys", &json!({ "label": "test" })).await.json();
            let cell = cells.cell_of(created["tenantId"].as_str().expect("a tenant")).await;
            clients[cell].get_or_insert(anonymous.with("x-api-key", created["key"].as_str().expect("a key")));
        }
        clients.into_iter().flatten().collect::<Vec<_>>()
    };
    for tenant in &clients {
        assert_eq!(tenant.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }

    forwarder.freeze_for_ever();
    // Requests of the frozen cell wait, until the service knows. Those of the others do not.
    let waiting: Vec<_> = (0..50)
        .map(|number| {
            let tenant = clients[1].key(&format!("k-{number}"));
            tokio::spawn(async move { tenant.post("/api/v1/usage", &usage("a", "s", 1)).await })
        })
        .collect();
    // If each of them waited for that database, they would take longer than two minutes.
    let began = Instant::now();
    for number in 0..20 {
        for tenant in [&clients[0], &clients[2]] {
            let answer = tenant.key(&format!("k-{number}")).post("/api/v1/usage", &usage("a", "s", 1)).await;
            assert_eq!(answer.status, 201, "{}", answer.text);
            assert_eq!(tenant.get("/api/v1/usage/a/s").await.status, 200);
        }
    }
    assert!(began.elapsed() < 2 * LIMIT, "{:?}", began.elapsed());
    for waiting in waiting {
        let answer = waiting.await.expect("a task");
        assert!(answer.status == 503 && answer.header("retry-after") == "1", "{}", answer.text);
    }
    wait_until(async || unavailable(&client).await[0]["cell"] == "eu").await;
    let ready = client.get("/api/v1/health/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)), "{}", ready.text);
    // The same holds for these.
    let began = Instant::now();
    for _ in 0..40 {
        assert_eq!(clients[1].post("/api/v1/usage", &usage("a", "s", 1)).await.status, 503);
        assert_eq!(clients[1].get("/api/v1/usage/a/s").await.error().0, 503);
    }
    assert!(began.elapsed() < 2 * LIMIT, "{:?}", began.elapsed());
    let metrics = client.get("/api/v1/metrics").await.text;
    for (cell, is_up) in [("home", 1), ("eu", 0), ("us", 1)] {
        assert!(metrics.contains(&format!("agentpay_cell_up{{cell=\"{cell}\"}} {is_up}\n")), "{metrics}");
    }
    let deep = client.get("/api/v1/health/deep").await.json();
    let check = deep["checks"].as_array().expect("checks").last().expect("a check");
    assert_eq!((&check["name"], &check["status"]), (&json!("cells"), &json!("error")), "{check}");
    let stats = client.get("/api/v1/stats").await.json();
    assert_eq!((&stats["missingCells"], &stats["lifetimeRequests"]), (&json!(["eu"]), &json!(42)), "{stats}");
    assert_eq!(client.get("/api/v1/audit").await.json()["missingCells"], json!(["eu"]));

    // New tenants go to the other cells, and changes by the operator take effect everywhere.
    let created = client.post("/api/v1/api-keys", &json!({ "label": "late" })).await.json();
    assert_ne!(cells.cell_of(created["tenantId"].as_str().expect("a tenant")).await, 1);
    assert_eq!(client.post("/api/v1/admin/pause", &json!({})).await.status, 200);
    assert_eq!(clients[2].post("/api/v1/usage", &usage("a", "s", 1)).await.error().1, "service_paused");
    assert_eq!(client.post("/api/v1/admin/unpause", &json!({})).await.status, 200);
    let prefix = &created["key"].as_str().expect("a key")[..12];
    assert_eq!(client.send("DELETE", &format!("/api/v1/api-keys/{prefix}"), None).await.status, 204);
}

#[tokio::test]
async fn a_service_starts_without_a_cell_and_uses_it_when_it_is_there() {
    let (cells, forwarder) = start_behind(&TWO, 1).await;
    let database = cells.cells[1].pool.connect_options();
    forwarder.lead_to(&of_no_server(&database));
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let client = service.client();
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    wait_until(async || unavailable(&client).await[0]["reason"] == "the database does not answer").await;
    forwarder.lead_to(&database);
    wait_until(async || unavailable(&client).await.is_null()).await;
    let clients = cells.a_tenant_in_each(&client).await;
    assert_eq!(clients[1].post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    assert_eq!(cells.numbers("SELECT count(*) FROM usage_counters").await, [1, 1]);
}

/// Options that lead to no server.
fn of_no_server(database: &PgConnectOptions) -> PgConnectOptions {
    database.clone().socket("/nowhere")
}

#[tokio::test]
async fn a_database_that_is_another_cell_is_not_used() {
    let mut cells = Cells::start(&THREE).await;
    cells.databases.swap(1, 2);
    cells.write_file(&THREE);
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let client = service.client();
    let reason = "the database of the cell eu in CELLS_FILE is that of the cell us";
    wait_until(async || unavailable(&client).await[0]["reason"] == reason).await;

    cells.databases.swap(0, 2);
    cells.write_file(&THREE);
    let ended = run(&["serve"], &[("CELLS_FILE", cells.file()), ("PORT", "1")]).await;
    assert!(!ended.status.success());
}

#[tokio::test]
async fn without_the_home_cell_known_keys_of_other_cells_go_on() {
    let (cells, forwarder) = start_behind(&TWO, 0).await;
    let service = Service::start_on(forwarder.options(), &[("CELLS_FILE", cells.file())]).await;
    let client = service.client();
    let clients = cells.a_tenant_in_each(&client).await;
    // A key that was looked up before a change of keys was noticed is not used without the home cell.
    // Of these tenants, one leaves for a cell of which the home cell does not know yet, and one loses its key.
    let (leaving_id, leaving) = tenant_in(&client, "eu").await;
    let (_, revoked) = tenant_in(&client, "eu").await;
    for tenant in [&leaving, &revoked] {
        assert_eq!(tenant.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }
    let prefix = &revoked.header("x-api-key").expect("a key")[..12];
    assert_eq!(client.send("DELETE", &format!("/api/v1/api-keys/{prefix}"), None).await.status, 204);
    service.config_watcher.run_once().await.expect("the configuration");
    for tenant in [&clients[1], &leaving] {
        assert_eq!(tenant.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }
    // Here a key may be revoked at any moment.
    let settings = [("CELLS_FILE", cells.file()), ("HOME_OUTAGE_MAX_MS", "0"), ("REQUEST_TIMEOUT_MS", "5000")];
    let strict = Service::start_on(forwarder.options(), &settings).await;
    let its_client = strict.client().with("x-api-key", &clients[1].header("x-api-key").expect("a key"));
    // It opens the other cell after it has started.
    wait_until(async || its_client.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 201).await;

    forwarder.freeze_for_ever();
    // Before the service knows that the cell is down.
    let pause = json!({});
    let (deleted, paused) = tokio::join!(
        client.send("DELETE", "/api/v1/api-keys/apk_nothing0", None),
        client.post("/api/v1/admin/pause", &pause)
    );
    assert_eq!((deleted.status, paused.status), (503, 503), "{} {}", deleted.text, paused.text);
    wait_until(async || unavailable(&client).await[0]["cell"] == "home").await;
    wait_until(async || its_client.get("/api/v1/health/ready").await.status == 503).await;
    assert_eq!(its_client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 503);
    assert_eq!(client.get("/api/v1/health/ready").await.status, 200);
    let leave = "UPDATE tenants SET residence = 'elsewhere', terms_revision = 7 WHERE tenant_id = $1";
    sqlx::query(leave).bind(&leaving_id).execute(&cells.cells[1].pool).await.expect("a tenant that left");
    for number in 0..20 {
        let answer = clients[1].key(&format!("k-{number}")).post("/api/v1/usage", &usage("a", "s", 1)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        // What others do does not end that: a request of a tenant that is being moved, and what the operator tries.
        match number {
            0..10 => {
                assert_eq!(leaving.post("/api/v1/usage", &usage("a", "s", 1)).await.error().1, "tenant_moving");
            }
            10 => assert_eq!(client.send("DELETE", "/api/v1/api-keys/apk_nothing0", None).await.status, 503),
            11 => assert_eq!(client.post("/api/v1/admin/pause", &json!({})).await.status, 503),
            _ => {}
        }
    }
    assert_eq!(client.get("/api/v1/health/ready").await.status, 200);
    assert_eq!(revoked.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 503);
    assert_eq!(clients[0].post("/api/v1/usage", &usage("a", "s", 1)).await.status, 503);
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 503);
}

/// A new tenant in this cell, and its client.
async fn tenant_in(client: &Client, cell: &str) -> (String, Client) {
    let created = client.post("/api/v1/api-keys", &json!({ "label": "test", "cell": cell })).await.json();
    let text = |name: &str| created[name].as_str().expect("a text").to_owned();
    (text("tenantId"), client.with("x-api-key", &text("key")))
}

#[tokio::test]
async fn without_the_home_cell_a_replica_that_knows_no_key_is_not_ready() {
    let (cells, forwarder) = start_behind(&TWO, 0).await;
    let service = Service::start_on(forwarder.options(), &[("CELLS_FILE", cells.file())]).await;
    let client = service.client();
    wait_until(async || unavailable(&client).await.is_null()).await;
    forwarder.freeze_for_ever();
    wait_until(async || client.get("/api/v1/health/ready").await.status == 503).await;
}

#[tokio::test]
async fn a_cell_that_is_killed_under_load_loses_nothing_and_the_others_notice_nothing() {
    let dir = DataDir::new();
    let server = LocalPostgres::start(dir.path(), &SERVER_SETTINGS).await.expect("a PostgreSQL");
    let database = server.connect_options("agentpay");
    let mut connection: PgConnection = database.connect().await.expect("a connection");
    MIGRATOR.run(&mut connection).await.expect("migrations");
    drop(connection);
    let cells = Cells::of(&THREE, vec![new_database().await, database, new_database().await]).await;
    let replicas = [(); 2].map(|()| Process::start_with(&[("CELLS_FILE", cells.file())], 0));
    let addresses = [replicas[0].address, replicas[1].address];
    let clients = cells.a_tenant_in_each(&replicas[0].client()).await;
    let tenants: Vec<Tenant> = clients.iter().map(|client| Tenant { key: client.header("x-api-key") }).collect();
    Load::register_services(&replicas[1].client(), &tenants).await;

    let (operations, seed) = (setting("CELLS_OPERATIONS", 3000), 7);
    let hurt = Load::start(0..operations, 8, seed, addresses, vec![tenants[1].clone()]);
    let others =
        Load::start(operations..2 * operations, 8, seed, addresses, vec![tenants[0].clone(), tenants[2].clone()]);
    for kill in 1..=2 {
        hurt.reach(kill * operations / 4, || {}).await;
        server.stop_immediately().await.expect("a kill");
        let before = others.acknowledged();
        others.reach(before + operations / 8, || {}).await;
        server.start_again().await.expect("a start");
    }
    let (hurt, others) = (hurt.end().await, others.end().await);
    assert_eq!((others.refused, others.lost, others.unknown), (0, 0, 0), "{others}");
    assert!(hurt.retries > 0, "{hurt}");
    let client = replicas[0].client();
    wait_until(async || unavailable(&client).await.is_null()).await;
    // Each record belongs to one load.
    hurt.check(&[&cells.cells[1].pool], &client).await;
    others.check(&[&cells.cells[0].pool, &cells.cells[2].pool], &client).await;
    cells.verify().await;
}
