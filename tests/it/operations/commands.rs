//! The commands of the binary beside a running service, on its private PostgreSQL as on one of DATABASE_URL.

use serde_json::{Value, json};

use crate::support::{DataDir, Process, new_database, run, url, usage};

async fn text(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = run(arguments, environment).await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("UTF-8"))
}

async fn commands_work_beside_a_service(process: &Process, environment: &[(&str, &str)]) {
    let client = process.client();
    client.post("/api/v1/usage", &usage("a", "s", 3)).await;
    assert_eq!(text(&["migrate"], environment).await, (Some(0), "the schema is up to date\n".to_owned()));
    assert_eq!(text(&["verify"], environment).await, (Some(0), "1 pairs add up\n".to_owned()));
    let sound = r#"{"isConsistent":true,"pairs":1,"findings":[],"findingsTotal":0}"#;
    assert_eq!(text(&["verify", "--format", "json"], environment).await, (Some(0), format!("{sound}\n")));
    let (code, made) = text(&["keys", "create", "--label", "by hand"], environment).await;
    assert_eq!(code, Some(0), "{made}");
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let key = made["key"].as_str().expect("a key");
    let tenant = made["tenantId"].as_str().expect("a tenant");
    assert_eq!(made["label"], "by hand");
    let recorded = client.with("x-api-key", key).post("/api/v1/usage", &usage("a", "s", 1)).await.json();
    assert_eq!(recorded, json!({"agent": "a", "serviceId": "s", "total": 1}));
    let (prefix, (code, listed)) = (&key[..12], text(&["keys", "list"], environment).await);
    let words: Vec<&str> = listed.lines().last().expect("a line").split_whitespace().collect();
    assert_eq!((code, words[0], words[1], &words[3..]), (Some(0), prefix, tenant, &["by", "hand"][..]), "{listed}");
    let (code, second) = text(&["keys", "create", "--label", "second", "--tenant", tenant], environment).await;
    assert_eq!((code, second.contains(tenant)), (Some(0), true), "{second}");
    assert_eq!(text(&["keys", "revoke", prefix], environment).await, (Some(0), String::new()));
    let refused = text(&["keys", "revoke", prefix], environment).await;
    assert_eq!(refused, (Some(1), format!("no api key with prefix {prefix}\n")));
    let refused = text(&["keys", "create", "--label", "x", "--tenant", "tnt_none"], environment).await;
    assert_eq!(refused, (Some(1), "no tenant with id tnt_none\n".to_owned()));
    let refused = text(&["keys", "create", "--label", " "], environment).await;
    assert_eq!(refused, (Some(1), "label must be a non-empty string up to 64 chars\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_use_the_private_postgresql_of_a_running_service() {
    let dir = DataDir::new();
    let environment = [("DATA_DIR", dir.as_str())];
    let mut process = Process::start_with(&environment, 0);
    commands_work_beside_a_service(&process, &environment).await;
    // The commands left the service's PostgreSQL alone; the service stops it, and the next command starts it itself.
    assert_eq!(process.client().get("/api/v1/health/ready").await.status, 200);
    process.signal("-TERM");
    process.exit().await;
    assert_eq!(dir.postmaster(), None);
    assert_eq!(text(&["verify"], &environment).await, (Some(0), "2 pairs add up\n".to_owned()));
    assert_eq!(dir.postmaster(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_use_the_database_of_database_url() {
    let database = url(&new_database().await);
    let environment = [("DATABASE_URL", database.as_str())];
    let process = Process::start_with(&environment, 0);
    commands_work_beside_a_service(&process, &environment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_each_pair_that_does_not_add_up() {
    let options = new_database().await;
    let database = url(&options);
    let environment = [("DATABASE_URL", database.as_str())];
    let pool = crate::support::pool(&options);
    // The database itself refuses a pair that does not add up; a total that was changed by hand it cannot see.
    sqlx::query(
        "WITH agent AS (INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a')) \
         INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, settled, version) \
         VALUES ('public', 'a', 's', 1, 2, 1)",
    )
    .execute(&pool)
    .await
    .expect("a pair");
    let (code, found) = text(&["verify", "--format", "json"], &environment).await;
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let total = found["findingsTotal"].as_u64().expect("a number") as usize;
    assert_eq!((code, &found["isConsistent"], &found["pairs"]), (Some(1), &json!(false), &json!(1)));
    assert!(total > 2 && found["findings"].as_array().map(Vec::len) == Some(total), "{found}");
    let (code, findings) = text(&["verify"], &environment).await;
    assert_eq!((code, findings.lines().count()), (Some(1), total), "{findings}");
    for finding in [
        "public a/s: settled 2 but the ledger bills 0",
        "public: total recorded is 0 but the rows add up to 3",
        "public: total outstanding is 0 but the rows add up to 1",
        "public: total pairs is 0 but the rows add up to 1",
    ] {
        assert!(findings.lines().any(|line| line == finding), "{finding}:\n{findings}");
    }
}
