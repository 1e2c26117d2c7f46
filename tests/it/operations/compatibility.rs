//! docs/compatibility.md: its commands move a tenant from one service to another, as they are printed.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{Client, Service, url, usage};

const GUIDE: &str = include_str!("../../../docs/compatibility.md");

/// The guide's commands, in order.
fn steps() -> Vec<&'static str> {
    let mut parts = GUIDE.split("```");
    parts.next();
    parts.step_by(2).map(|block| block.strip_prefix("sh\n").expect("a block of sh")).collect()
}

async fn key(service: &Service, label: &str) -> String {
    let made = service.client().with("x-api-key", "admin").post("/api/v1/api-keys", &json!({ "label": label })).await;
    made.json()["key"].as_str().expect("a key").to_owned()
}

async fn fill(client: &Client) {
    for service in [
        json!({ "serviceId": "plain", "priceStroops": 3 }),
        json!({ "serviceId": "described", "priceStroops": 0, "description": "it's \"quoted\" \\ é", "owner": "o" }),
        json!({ "serviceId": "switched-off", "priceStroops": 5, "description": "", "owner": "o" }),
    ] {
        assert_eq!(client.post("/api/v1/services", &service).await.status, 201);
    }
    let long = "a".repeat(256);
    for (agent, service, requests) in [
        ("a", "plain", 1_000_000),
        ("a", "plain", 1_000_000),
        ("a", "plain", 1),
        ("b", "switched-off", 7),
        (&long, "unregistered", 1_000_000),
        ("settled", "plain", 4),
    ] {
        assert_eq!(client.post("/api/v1/usage", &usage(agent, service, requests)).await.status, 201);
    }
    client.post("/api/v1/settle", &json!({ "agent": "settled", "serviceId": "plain" })).await;
    client.send("POST", "/api/v1/services/switched-off/disable", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_moves_services_and_outstanding_usage_exactly_once() {
    // Another AgentPay stands in for the original, whose routes and bodies these are.
    let old = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let new = Service::start(&[("ADMIN_API_KEY", "admin"), ("REQUIRE_API_KEY", "true"), ("RATE_LIMIT", "on")]).await;
    key(&old, "another").await;
    let old_key = key(&old, "shop").await;
    fill(&old.client().with("x-api-key", &old_key)).await;

    let mut steps = steps();
    assert_eq!(steps.len(), 3);
    // The import once more, as after an interruption.
    let import = steps[1];
    assert!(import.contains("agentpay-billing import"));
    steps.insert(2, import);
    let dir = std::env::temp_dir().join(format!("agentpay-move-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).expect("a directory");
    let program = Path::new(env!("CARGO_BIN_EXE_agentpay-billing")).parent().expect("a directory");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a path"));
    let run = Command::new("sh")
        .arg("-c")
        .arg(format!("set -e\n{}\necho moved", steps.join("\n")))
        .current_dir(&dir)
        .envs([("OLD", format!("http://{}", old.address)), ("NEW", format!("http://{}", new.address))])
        .envs([("OLD_ADMIN", "admin"), ("OLD_KEY", &old_key), ("PATH", &path)])
        .env("DATABASE_URL", url(&new.pool.connect_options()))
        .output();
    let output = tokio::task::block_in_place(|| run).expect("sh, curl and jq");
    let _ = std::fs::remove_dir_all(&dir);
    assert!(output.status.success() && output.stdout.ends_with(b"moved\n"), "{output:?}");

    let rows = "SELECT count(*) * 100000000 + sum(outstanding + settled + reset)::bigint FROM usage_counters WHERE tenant_id <> 'public'";
    assert_eq!(new.number(rows).await, 3 * 100_000_000 + 3_000_008);
    assert_eq!(new.number("SELECT count(*) FROM services WHERE disabled").await, 1);
    assert_eq!(new.number("SELECT count(*) FROM api_keys").await, 2);
    new.verify().await;
}
