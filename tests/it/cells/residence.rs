//! New tenants are spread over the cells, each request uses the cell of its tenant, and a cell executes only what belongs
//! there.

use serde_json::json;
use sqlx::Executor;

use crate::support::{Cells, Process, Service, usage, wait_until};

const WEIGHTED: [(&str, u32); 3] = [("home", 1), ("eu", 1), ("us", 2)];

#[tokio::test]
async fn new_tenants_are_spread_by_weight_and_their_data_is_in_their_cell_only() {
    let cells = Cells::start(&WEIGHTED).await;
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let client = service.client();
    for cell in 1..3 {
        wait_until(async || service_is_ready_for(&service, cells.cells[cell].id).await).await;
    }
    let mut tenants = Vec::new();
    for number in 0..8 {
        let created = client.post("/api/v1/api-keys", &json!({ "label": "t" })).await.json();
        let tenant = client.with("x-api-key", created["key"].as_str().expect("a key"));
        let service = tenant.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
        assert_eq!(service.status, 201, "{}", service.text);
        let first = tenant.key("k").post("/api/v1/usage", &usage("a", "s", number + 1)).await;
        let again = tenant.key("k").post("/api/v1/usage", &usage("a", "s", number + 1)).await;
        assert!(first.status == 201 && again.replayed && first.same(&again), "{}", first.text);
        tenants.push((created["tenantId"].as_str().expect("a tenant").to_owned(), tenant));
    }
    // The tenant `public` lives in the home cell.
    let here = "SELECT count(*) FROM tenants WHERE residence = 'here' AND tenant_id <> 'public'";
    assert_eq!(cells.numbers(here).await, [2, 2, 4]);
    assert_eq!(cells.numbers("SELECT count(*) FROM usage_counters").await, [2, 2, 4]);
    assert_eq!(cells.numbers("SELECT count(*) FROM idempotency_keys").await, [2, 2, 4]);
    assert_eq!(cells.numbers("SELECT count(*) FROM api_keys").await, [8, 0, 0]);
    for (number, (id, tenant)) in tenants.iter().enumerate() {
        let settled = tenant.key("s").post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await.json();
        assert_eq!(settled["billedStroops"], 5 * (number + 1));
        assert_eq!(tenant.get("/api/v1/settlements").await.json()["items"].as_array().expect("items").len(), 1);
        assert_eq!(tenant.get("/api/v1/idempotency/k").await.status, 200);
        let stats = tenant.get("/api/v1/stats").await.json();
        assert_eq!((&stats["settlementsTotal"], &stats["totalApiKeys"]), (&json!(1), &json!(1)), "{stats}");
        // A second key of the tenant leads to the same cell.
        let created = client.post("/api/v1/api-keys", &json!({ "label": "t", "tenantId": id })).await.json();
        let second = client.with("x-api-key", created["key"].as_str().expect("a key"));
        assert!(second.key("k").post("/api/v1/usage", &usage("a", "s", number as i64 + 1)).await.replayed);
    }
    cells.verify().await;
}

async fn service_is_ready_for(service: &Service, cell: &str) -> bool {
    !service.client().get("/api/v1/health/ready").await.text.contains(&format!("\"{cell}\""))
}

/// What a move of a tenant does at its end, without its rows.
async fn move_to(cells: &Cells, tenant: &str, from: usize, to: usize) {
    let run = async |cell: usize, sql: &'static str| {
        sqlx::query(sql).bind(tenant).execute(&cells.cells[cell].pool).await.expect(sql);
    };
    run(from, "UPDATE tenants SET residence = 'leaving', terms_revision = 7 WHERE tenant_id = $1").await;
    run(to, "INSERT INTO tenants (tenant_id) VALUES ($1)").await;
    run(from, "UPDATE tenants SET residence = 'elsewhere', terms_revision = 8 WHERE tenant_id = $1").await;
    let id = cells.cells[to].id;
    sqlx::query("UPDATE tenant_cells SET cell_id = $2 WHERE tenant_id = $1")
        .bind(tenant)
        .bind(id)
        .execute(&cells.cells[0].pool)
        .await
        .expect("a cell");
}

#[tokio::test]
async fn a_replica_that_was_frozen_while_a_tenant_moved_is_refused_in_the_old_cell() {
    let cells = Cells::start(&[("home", 1), ("eu", 1), ("us", 1)]).await;
    let replica = Process::start_with(&[("CELLS_FILE", cells.file())], 0);
    let client = replica.client();
    let clients = cells.a_tenant_in_each(&client).await;
    let tenant = &clients[1];
    assert_eq!(tenant.key("k-0").post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let id: String = sqlx::query_scalar("SELECT tenant_id FROM usage_counters")
        .fetch_one(&cells.cells[1].pool)
        .await
        .expect("the tenant");

    replica.signal("-STOP");
    let sent: Vec<_> = (0..20)
        .map(|number| {
            let tenant = tenant.key(&format!("k-{number}"));
            tokio::spawn(async move { tenant.post("/api/v1/usage", &usage("a", "s", 1)).await })
        })
        .collect();
    move_to(&cells, &id, 1, 2).await;
    replica.signal("-CONT");
    for sent in sent {
        let answer = sent.await.expect("a task");
        let is_refused = answer.status == 503 && answer.error().1 == "tenant_moving";
        assert!(is_refused || answer.status == 201 && !answer.replayed, "{}", answer.text);
    }
    assert_eq!(cells.numbers("SELECT count(*) FROM idempotency_keys").await[1], 1, "the record from before");
    wait_until(async || tenant.key("k-new").post("/api/v1/usage", &usage("a", "s", 1)).await.status == 201).await;
    assert_eq!(cells.numbers("SELECT count(*) FROM idempotency_keys").await[1], 1);
    assert!(cells.numbers("SELECT count(*) FROM idempotency_keys").await[2] > 0);
}

#[tokio::test]
async fn a_replica_with_an_old_directory_neither_writes_nor_replays_in_the_old_cell() {
    let cells = Cells::start(&[("home", 1), ("eu", 1)]).await;
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let clients = cells.a_tenant_in_each(&service.client()).await;
    let tenant = &clients[1];
    assert_eq!(tenant.key("old").post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    // The directory still says that the tenant lives in this cell.
    let leave = "UPDATE tenants SET residence = 'elsewhere', terms_revision = 7 WHERE tenant_id <> 'public'";
    cells.cells[1].pool.execute(leave).await.expect("it leaves");
    for key in ["old", "new"] {
        let refused = tenant.key(key).post("/api/v1/usage", &usage("a", "s", 1)).await;
        assert_eq!((refused.status, refused.error().1.as_str()), (503, "tenant_moving"), "{key}");
        assert_eq!(refused.header("retry-after"), "1");
    }
    let refused = tenant.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    assert_eq!((refused.status, refused.error().1.as_str()), (503, "tenant_moving"));
    // What is not found here may be in the other cell.
    for path in ["idempotency/old", "idempotency/new", "agents/a/usage", "usage/export.json", "settlements", "events"] {
        let refused = tenant.get(&format!("/api/v1/{path}")).await;
        assert_eq!((refused.status, refused.error().1.as_str()), (503, "tenant_moving"), "{path}");
    }
    assert_eq!(cells.numbers("SELECT count(*) FROM idempotency_keys").await, [0, 1]);
    // Nor does a program that compares the revision only.
    let compared = "SELECT refuse_changed_terms(ARRAY[tenant_id::text], ARRAY[terms_revision]) FROM tenants WHERE tenant_id <> 'public'";
    let refused = cells.cells[1].pool.execute(compared).await.expect_err("it lives elsewhere");
    assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("OC003"));
}
