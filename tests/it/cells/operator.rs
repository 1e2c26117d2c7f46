//! What the operator reads of all cells.

use serde_json::{Value, json};

use crate::support::{Cells, Client, Service, run, usage, wait_until};

#[tokio::test]
async fn statistics_and_the_audit_log_are_of_all_cells() {
    let cells = Cells::start(&[("home", 1), ("eu", 1), ("us", 1)]).await;
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let operator = service.client();
    let clients = cells.a_tenant_in_each(&operator).await;
    for (number, tenant) in (1..).zip(&clients) {
        for name in ["x", "y"] {
            let body = json!({ "serviceId": name, "priceStroops": number });
            assert_eq!(tenant.post("/api/v1/services", &body).await.status, 201);
            assert_eq!(tenant.post("/api/v1/usage", &usage("a", name, number)).await.status, 201);
        }
        assert_eq!(tenant.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "x" })).await.status, 200);
    }
    let stats = operator.get("/api/v1/stats").await.json();
    let keys: i64 = cells.numbers("SELECT count(*) FROM api_keys").await[0];
    let expected = [
        ("totalServices", json!(6)),
        ("totalApiKeys", json!(keys)),
        ("usageKeys", json!(6)),
        ("totalRequests", json!(6)),
        ("lifetimeRequests", json!(12)),
        ("uniqueAgents", json!(3)),
        ("settledStroopsTotal", json!("14")),
        ("settlementsTotal", json!(3)),
        ("missingCells", Value::Null),
    ];
    for (name, expected) in expected {
        assert_eq!(stats[name], expected, "{name}: {stats}");
    }

    // Pages of all cells are the whole list, in its order.
    let whole = stats["servicesBreakdown"].as_array().expect("lines").clone();
    assert_eq!(
        pages(&operator, "/api/v1/stats?limit=1", "servicesBreakdown", "nextServicesBreakdownCursor").await,
        whole
    );
    let name = |line: &Value| (line["tenantId"].to_string(), line["serviceId"].to_string());
    assert!(whole.len() == 6 && whole.is_sorted_by_key(name), "{whole:?}");
    let log = operator.get("/api/v1/audit?operation=service.created").await.json();
    let entries = log["items"].as_array().expect("entries").clone();
    assert_eq!(entries.len(), 6);
    assert!(entries.is_sorted_by_key(|entry| -entry["changedAt"].as_i64().expect("a time")));
    let path = "/api/v1/audit?operation=service.created&limit=1";
    assert_eq!(pages(&operator, path, "items", "nextCursor").await, entries);

    let metrics = operator.get("/api/v1/metrics").await.text;
    for cell in ["home", "eu", "us"] {
        for name in ["agentpay_cell_up", "agentpay_services_total", "agentpay_commit_queue_depth"] {
            assert!(metrics.contains(&format!("{name}{{cell=\"{cell}\"}} ")), "{name} {cell}: {metrics}");
        }
        for sample in [
            format!("agentpay_db_connections{{cell=\"{cell}\",state=\"idle\"}} "),
            format!("agentpay_job_failures_total{{cell=\"{cell}\",job=\"webhook_lease\"}} "),
            format!("agentpay_commit_retries_total{{cell=\"{cell}\",reason=\"deadlock\"}} "),
            format!("agentpay_idempotency_expired_total{{cell=\"{cell}\"}} "),
            format!("agentpay_webhook_deliveries_total{{cell=\"{cell}\",outcome=\"delivered\"}} "),
        ] {
            assert!(metrics.contains(&sample), "{sample}: {metrics}");
        }
        // This service has committed there.
        let commits = format!("agentpay_commit_batch_size_count{{cell=\"{cell}\"}} ");
        let commits = metrics.lines().find_map(|line| line.strip_prefix(&commits)).expect("commits");
        assert!(commits.parse::<u64>().expect("a number") >= 5, "{commits}");
    }
    assert_eq!(metrics.matches("# TYPE agentpay_services_total").count(), 1);
}

/// All items of a list, read page by page.
async fn pages(client: &Client, path: &str, items: &str, cursor: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut next = String::new();
    loop {
        let page = client.get(&format!("{path}{next}")).await.json();
        all.extend(page[items].as_array().expect("items").clone());
        let Some(cursor) = page[cursor].as_str() else { return all };
        next = format!("&cursor={cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_chooses_the_cell_of_a_new_tenant() {
    let cells = Cells::start(&[("home", 1), ("eu", 1), ("us", 1)]).await;
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let operator = service.client();
    wait_until(async || operator.get("/api/v1/health/ready").await.json()["unavailableCells"].is_null()).await;
    let mut tenants = Vec::new();
    for (number, id) in ["home", "eu", "us"].into_iter().enumerate() {
        for _ in 0..2 {
            let made = operator.post("/api/v1/api-keys", &json!({ "label": "l", "cell": id })).await;
            assert_eq!(made.status, 201, "{made:?}");
            let tenant = made.json()["tenantId"].as_str().expect("a tenant").to_owned();
            assert_eq!(cells.cell_of(&tenant).await, number);
            let client = service.client().with("x-api-key", made.json()["key"].as_str().expect("a key"));
            assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
            tenants.push(tenant);
        }
        // The key of a tenant that exists.
        let tenant = tenants.last().expect("a tenant");
        let body = json!({ "label": "l", "tenantId": tenant, "cell": id });
        assert_eq!(operator.post("/api/v1/api-keys", &body).await.status, 201);
    }
    let used = "SELECT count(*) FROM usage_counters";
    assert_eq!(cells.numbers(used).await, [2, 2, 2]);

    sqlx::query("UPDATE cells SET accepts_tenants = false WHERE cell_id = 'eu'")
        .execute(&cells.cells[0].pool)
        .await
        .expect("a drained cell");
    let form = "cell must be 1-32 lowercase letters, digits or hyphens, beginning with no hyphen";
    let lives = format!("the tenant {} lives in the cell us", tenants[4]);
    for (body, message) in [
        (json!({ "cell": "asia" }), "no cell with id asia"),
        (json!({ "cell": "eu" }), "the cell eu accepts no new tenants"),
        (json!({ "cell": "eu", "tenantId": tenants[4] }), lives.as_str()),
        (json!({ "cell": "asia", "tenantId": tenants[4] }), "no cell with id asia"),
        (json!({ "cell": "EU" }), form),
        (json!({ "cell": "" }), form),
        (json!({ "cell": null }), form),
        (json!({ "cell": 1, "scopes": 1 }), form),
    ] {
        let mut body = body;
        body["label"] = "l".into();
        let refused = operator.post("/api/v1/api-keys", &body).await.error();
        assert_eq!(refused, (400, "invalid_request".to_owned(), message.to_owned()), "{body}");
    }
    // Also when there is no room for a key.
    assert_eq!(operator.send("PATCH", "/api/v1/config", Some(r#"{"apiKeyStoreMaxKeys":1}"#)).await.status, 200);
    for (cell, status) in [("eu", 400), ("us", 429), ("home", 429)] {
        assert_eq!(operator.post("/api/v1/api-keys", &json!({ "label": "l", "cell": cell })).await.status, status);
    }
    assert_eq!(operator.send("PATCH", "/api/v1/config", Some(r#"{"apiKeyStoreMaxKeys":10000}"#)).await.status, 200);
    let unknown = operator.post("/api/v1/api-keys", &json!({ "label": "l", "tenantId": "x", "cell": "us" })).await;
    assert_eq!(unknown.error().0, 404);
    // A tenant that lives there gets further keys.
    let existing = json!({ "label": "l", "tenantId": tenants[2], "cell": "eu" });
    assert_eq!(operator.post("/api/v1/api-keys", &existing).await.status, 201);

    // The command does the same. A cell that was drained gets no tenant unless it is named.
    let file = cells.file();
    let tenant_of = async |arguments: &[&str]| {
        let made = printed(&[&["keys", "create", "--label", "l"], arguments].concat(), file).await;
        let made: Value = serde_json::from_str(&made).expect("JSON");
        made["tenantId"].as_str().expect("a tenant").to_owned()
    };
    for (number, id) in [(0, "home"), (2, "us")] {
        assert_eq!(cells.cell_of(&tenant_of(&["--cell", id]).await).await, number);
    }
    for _ in 0..4 {
        assert_ne!(cells.cell_of(&tenant_of(&[]).await).await, 1);
    }
    assert_eq!(tenant_of(&["--cell", "us", "--tenant", &tenants[4]]).await, tenants[4]);
    for (arguments, message) in [
        (&["--cell", "asia"][..], "CELLS_FILE has no cell asia"),
        (&["--cell", "eu"], "the cell eu accepts no new tenants"),
        (&["--cell", "eu", "--tenant", &tenants[4]], &lives),
    ] {
        let reason = refused(&[&["keys", "create", "--label", "l"], arguments].concat(), file).await;
        assert_eq!(reason, format!("{message}\n"));
    }
    let one = Service::start(&[]).await;
    let refused = one.client().post("/api/v1/api-keys", &json!({ "label": "l", "cell": "eu" })).await.error();
    assert_eq!((refused.0, refused.2.as_str()), (400, "cell cannot be named: this service has one database"));
    cells.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_creates_no_tenant_in_a_cell_that_is_down() {
    let ids = [("home", 1), ("eu", 100)];
    let mut cells = Cells::start(&ids).await;
    cells.databases[1] = cells.databases[1].clone().socket("/nowhere");
    cells.write_file(&ids);
    let made = printed(&["keys", "create", "--label", "l"], cells.file()).await;
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let tenant = made["tenantId"].as_str().expect("a tenant");
    assert_eq!(cells.cell_of(tenant).await, 0);
    let reason = refused(&["cells", "move", tenant, "--to", "eu"], cells.file()).await;
    assert!(reason.starts_with("the database of eu cannot be reached: "), "{reason}");
}

#[tokio::test]
async fn a_move_that_is_not_complete_is_in_the_metrics() {
    let cells = Cells::start(&[("home", 1), ("eu", 1)]).await;
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let metrics = async || service.client().get("/api/v1/metrics").await.text;
    let text = metrics().await;
    for step in ["copying", "fenced", "copied", "switched"] {
        for name in ["agentpay_tenant_moves", "agentpay_tenant_move_age_seconds"] {
            assert!(text.contains(&format!("\n{name}{{step=\"{step}\"}} 0\n")), "{text}");
        }
    }
    let begin = "INSERT INTO tenant_moves (tenant_id, from_cell, to_cell, step, started_at)
        VALUES ('a', 'home', 'eu', 'fenced', now() - interval '1 hour'), ('b', 'home', 'eu', 'fenced', now())";
    sqlx::query(begin).execute(&cells.cells[0].pool).await.expect("moves");
    let text = metrics().await;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim().parse::<f64>().expect("a number")
    };
    assert!(text.contains("agentpay_tenant_moves{step=\"fenced\"} 2\n"), "{text}");
    let age = value("agentpay_tenant_move_age_seconds{step=\"fenced\"}");
    assert!((3600.0..4000.0).contains(&age), "{age}");
    // A service with one cell has no moves.
    let alone = Service::start(&[]).await;
    assert!(!alone.client().get("/api/v1/metrics").await.text.contains("agentpay_tenant_move"));
}

/// Runs a command; it must succeed. Returns what it printed.
async fn printed(arguments: &[&str], file: &str) -> String {
    let output = run(arguments, &[("CELLS_FILE", file)]).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command; it must be refused. Returns the reason.
async fn refused(arguments: &[&str], file: &str) -> String {
    let output = run(arguments, &[("CELLS_FILE", file)]).await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_finds_the_cell_of_its_tenant() {
    let cells = Cells::start(&[("home", 1), ("eu", 1)]).await;
    // The limits of the home cell apply to all cells.
    let limits = [("CELLS_FILE", cells.file()), ("JANITOR_INTERVAL_MS", "3600000")];
    let service = Service::start_on(cells.home(), &limits).await;
    let operator = service.client();
    assert_eq!(operator.send("PATCH", "/api/v1/config", Some(r#"{"eventLogCap":1}"#)).await.status, 200);
    let clients = cells.a_tenant_in_each(&operator).await;
    let file = cells.file();
    let services = json!({ "services": [{ "serviceId": "imported", "priceStroops": 1 }], "nextCursor": null });
    let path = std::env::temp_dir().join(format!("agentpay-services-{}.json", uuid::Uuid::new_v4()));
    std::fs::write(&path, services.to_string()).expect("a file");
    let path = path.to_str().expect("UTF-8");
    for (number, (cell, tenant)) in ["home", "eu"].into_iter().zip(&clients).enumerate() {
        let recorded = tenant.key("k").post("/api/v1/usage", &usage("a", "s", 2)).await;
        assert_eq!(recorded.status, 201);
        assert_eq!(tenant.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await.status, 200);
        let webhook = json!({ "url": "https://example.com/", "events": ["usage.reset"] });
        assert_eq!(tenant.post("/api/v1/webhooks", &webhook).await.status, 201);
        let id = "SELECT tenant_id FROM webhooks";
        let id: String = sqlx::query_scalar(id).fetch_one(&cells.cells[number].pool).await.expect("a tenant");
        let shown = printed(&["idempotency", "show", "k", "--tenant", &id, "--format", "json"], file).await;
        assert!(shown.contains("/api/v1/usage"), "{cell}: {shown}");
        let export = printed(&["settlements", "export", "--tenant", &id], file).await;
        assert_eq!(export.lines().count(), 2, "{cell}: {export}");
        printed(&["deliveries", "list", "--tenant", &id], file).await;
        // A cell where the tenant does not live cannot tell what was not executed.
        let elsewhere = if cell == "home" { "eu" } else { "home" };
        for arguments in [
            &["idempotency", "show", "k"][..],
            &["settlements", "export"],
            &["deliveries", "list"],
            &["deliveries", "retry", "--failed-since", "1h"],
        ] {
            let reason = refused(&[arguments, &["--tenant", &id, "--cell", elsewhere]].concat(), file).await;
            assert_eq!(reason, format!("no tenant with id {id} lives in this database\n"), "{arguments:?}");
        }
        printed(&["import", "--tenant", &id, "--services", path], file).await;
        let imported = cells.numbers("SELECT count(*) FROM services WHERE service_id = 'imported'").await;
        assert_eq!(imported, [1, number as i64]);
        let key = printed(&["keys", "create", "--label", "second", "--tenant", &id], file).await;
        assert!(key.contains(&id), "{key}");
    }
    let _ = std::fs::remove_file(path);
    assert!(refused(&["deliveries", "list", "--tenant", "nobody"], file).await.contains("no tenant with id nobody"));

    // Commands about all tenants of a cell.
    let of_a_cell: [&[&str]; 8] = [
        &["idempotency", "stats"],
        &["settlements", "export"],
        &["audit", "export"],
        &["deliveries", "list"],
        &["deliveries", "retry", "--failed-since", "1h"],
        &["verify"],
        &["secrets", "check"],
        &["prune", "--dry-run"],
    ];
    for arguments in of_a_cell {
        let reason = refused(arguments, file).await;
        assert_eq!(reason, "CELLS_FILE lists several cells: name one with --cell\n", "{arguments:?}");
        printed(&[arguments, &["--cell", "eu"]].concat(), file).await;
    }
    let pruned = printed(&["prune", "--dry-run", "--cell", "eu", "--format", "json"], file).await;
    let pruned: Value = serde_json::from_str(&pruned).expect("JSON");
    assert!(pruned["events"].as_i64() > Some(0), "{pruned}");
    for (arguments, error) in [
        (&["verify", "--cell", "asia"][..], "CELLS_FILE has no cell asia"),
        (&["keys", "list", "--cell", "eu"], "this command does not take --cell"),
    ] {
        assert!(refused(arguments, file).await.contains(error), "{arguments:?}");
    }
    drop(service);

    let mut cells = cells;
    cells.databases.swap(0, 1);
    cells.write_file(&[("home", 1), ("eu", 1)]);
    let file = cells.file();
    let error = "the database of the cell eu in CELLS_FILE is that of the cell home";
    for arguments in of_a_cell {
        assert!(refused(&[arguments, &["--cell", "eu"]].concat(), file).await.contains(error), "{arguments:?}");
    }
    let error = "the database of the cell home in CELLS_FILE is that of the cell eu";
    assert!(refused(&["deliveries", "list", "--tenant", "public"], file).await.contains(error));
}
