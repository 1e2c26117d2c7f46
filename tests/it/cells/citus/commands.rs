//! What commands do with a cell on Citus, and what they and the service refuse.

use serde_json::json;
use sqlx::AssertSqlSafe;

use super::{Deployment, deployment};
use crate::support::{Behaviour, Receiver, usage, wait_until};

/// The base64 of 32 bytes of 1.
const KEYS: &str = "a:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

impl Deployment {
    async fn succeeds(&self, arguments: &[&str]) -> String {
        let (code, text) =
            self.command_with(&[&["--cell", "eu"], arguments].concat(), &[("ENCRYPTION_KEYS", KEYS)]).await;
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    }

    async fn is_refused(&self, arguments: &[&str], reason: &str) {
        let (code, text) = self.command(arguments).await;
        assert!(code == 1 && text.contains(reason), "{arguments:?}: {code} {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_read_and_change_a_cell_on_citus() {
    let Some(deployment) = deployment().await else { return };
    deployment.add().await;
    let replica = deployment.replica(&[("ENCRYPTION_KEYS", &format!("plain {KEYS}"))]);
    let tenant = deployment.tenant(&replica.client()).await;
    let client = tenant.client(&replica.client());
    let receiver = Receiver::start().await;
    receiver.usually(Behaviour::Status(410));
    let hook = json!({ "url": receiver.url, "events": ["usage.recorded"] });
    let hook = client.post("/api/v1/webhooks", &hook).await.json();
    let hook = format!("/api/v1/webhooks/{}", hook["id"].as_str().expect("an id"));
    assert_eq!(client.key("first").post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    assert_eq!(client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await.status, 200);

    assert!(deployment.succeeds(&["secrets", "check"]).await.contains("plain text"));
    assert!(deployment.succeeds(&["secrets", "encrypt"]).await.contains("key a"));
    let encrypted = "SELECT count(*) FROM webhooks WHERE secret_key_id = 'a'";
    assert_eq!(sqlx::query_scalar::<_, i64>(encrypted).fetch_one(&deployment.cell).await.expect("a count"), 1);
    assert!(deployment.succeeds(&["audit", "export"]).await.contains("secrets"));
    assert!(deployment.succeeds(&["settlements", "export"]).await.contains("stl_"));
    assert!(deployment.succeeds(&["idempotency", "stats"]).await.contains("tenant:"));
    assert!(deployment.succeeds(&["verify"]).await.contains("add up"));
    assert!(deployment.command(&["cells", "list"]).await.1.contains("eu"));
    assert_eq!(deployment.command(&["cells", "migrate"]).await.0, 0);
    assert!(deployment.succeeds(&["prune", "--dry-run"]).await.contains("expired"));

    // A receiver that fails disables its webhook in the end. Deliveries are sent again with the secret, which is encrypted.
    let failed = async || deployment.succeeds(&["deliveries", "list"]).await.contains("dlv_");
    wait_until(failed).await;
    receiver.usually(Behaviour::Status(200));
    assert_eq!(client.send("PATCH", &hook, Some(r#"{"events":["usage.recorded"]}"#)).await.status, 200);
    let id = deployment.succeeds(&["deliveries", "list"]).await;
    let id = id.split_whitespace().find(|word| word.starts_with("dlv_")).expect("an id").to_owned();
    let delivered = async || {
        deployment.command_with(&["--cell", "eu", "deliveries", "retry", &id], &[]).await;
        deployment.succeeds(&["deliveries", "list"]).await.contains("delivered")
    };
    wait_until(delivered).await;
    drop(replica);
    deployment.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cell_on_citus_cannot_do_is_refused_with_a_reason() {
    let Some(deployment) = deployment().await else { return };
    deployment.is_refused(&["cells", "add", "eu"], "--citus").await;
    deployment.is_refused(&["cells", "migrate"], "cells add").await;
    deployment.add().await;
    let replica = deployment.replica(&[]);
    let tenant = deployment.tenant(&replica.client()).await;
    let client = tenant.client(&replica.client());
    assert_eq!(client.key("first").post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let id: String =
        sqlx::query_scalar("SELECT tenant_id FROM tenant_cells").fetch_one(&deployment.home).await.expect("a tenant");
    let reason = "eu is on Citus: tenants are not moved to or from it";
    deployment.is_refused(&["cells", "move", &id, "--to", "home"], reason).await;
    deployment.is_refused(&["cells", "drain", "eu"], reason).await;
    let unchanged = "SELECT NOT EXISTS (SELECT FROM tenant_moves) AND bool_and(accepts_tenants) FROM cells";
    let is_unchanged =
        async || sqlx::query_scalar::<_, bool>(unchanged).fetch_one(&deployment.home).await.expect("an answer");
    assert!(is_unchanged().await);
    assert_eq!(client.key("second").post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);

    // The file says otherwise: the statements for PostgreSQL are never sent to a distributed schema.
    deployment.write_file("");
    deployment.is_refused(&["cells", "migrate"], "is distributed by Citus").await;
    deployment.is_refused(&["cells", "move", &id, "--to", "home"], reason).await;
    deployment.is_refused(&["cells", "drain", "eu"], reason).await;
    assert!(is_unchanged().await);
    let other = deployment.replica(&[]);
    let unavailable = async || other.client().get("/api/v1/health/ready").await.text;
    wait_until(async || unavailable().await.contains("is distributed by Citus")).await;
    let refused = tenant.client(&other.client()).post("/api/v1/usage", &usage("a", "s", 1)).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    deployment.write_file("citus = true");

    // Nor is a cell on Citus the home cell.
    let file = deployment.file();
    let text = std::fs::read_to_string(&file).expect("the file");
    let (home, citus) = text.split_at(text.rfind("[[cell]]").expect("the second cell"));
    std::fs::write(&file, format!("{citus}\n{home}")).expect("a file");
    deployment.is_refused(&["cells", "list"], "is the home cell, which cannot be on Citus").await;
    std::fs::write(&file, &text).expect("a file");
    drop((replica, other));
    deployment.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_cell_becomes_distributed_and_replicas_that_used_it_stop() {
    for has_data in [true, false] {
        let Some(deployment) = deployment().await else { return };
        let schema = format!("CREATE SCHEMA \"{}\"", deployment.schema);
        sqlx::raw_sql(AssertSqlSafe(schema)).execute(&deployment.cell).await.expect("a schema");
        deployment.write_file("");
        assert_eq!(deployment.command(&["cells", "add", "eu"]).await.0, 0);
        let replica = deployment.replica(&[]);
        let ready = async || replica.client().get("/api/v1/health/ready").await.text;
        wait_until(async || !ready().await.contains("unavailableCells")).await;
        if has_data {
            deployment.tenant(&replica.client()).await;
        }
        deployment.write_file("citus = true");
        if has_data {
            deployment.is_refused(&["cells", "add", "eu", "--citus"], "only an empty cell").await;
            deployment.write_file("");
        } else {
            deployment.add().await;
            wait_until(async || ready().await.contains("is distributed by Citus")).await;
        }
        drop(replica);
        deployment.end().await;
    }
}
