//! What the operator reads of all cells.

use serde_json::{Value, json};

use crate::support::{Cells, Client, Service, run, usage};

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
        assert!(metrics.contains(&format!("agentpay_db_connections{{cell=\"{cell}\",state=\"idle\"}} ")), "{metrics}");
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

#[tokio::test]
async fn commands_read_the_cell_that_they_name() {
    let cells = Cells::start(&[("home", 1), ("eu", 1)]).await;
    let service = Service::start_on(cells.home(), &[("CELLS_FILE", cells.file())]).await;
    let clients = cells.a_tenant_in_each(&service.client()).await;
    for tenant in &clients {
        assert_eq!(tenant.post("/api/v1/usage", &usage("a", "s", 2)).await.status, 201);
        assert_eq!(tenant.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await.status, 200);
    }
    let file = [("CELLS_FILE", cells.file())];
    for cell in ["home", "eu"] {
        let export = run(&["settlements", "export", "--format", "json", "--cell", cell], &file).await;
        let text = String::from_utf8(export.stdout).expect("UTF-8");
        assert_eq!(text.matches("\"agent\"").count(), 1, "{cell}: {text}");
        assert!(run(&["verify", "--cell", cell], &file).await.status.success());
    }
    for (arguments, error) in [
        (["verify", "--cell", "asia"], "CELLS_FILE does not list a cell asia"),
        (["prune", "--cell", "eu"], "this command does not take --cell"),
    ] {
        let refused = run(&arguments, &file).await;
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains(error), "{arguments:?}");
    }
}
