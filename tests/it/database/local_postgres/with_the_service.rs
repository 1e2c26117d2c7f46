//! The private PostgreSQL of a running service, and of the commands beside it.

use std::fs;

use agentpay_billing::local_postgres::LocalPostgres;
use sqlx::{Connection, PgConnection};

use super::{TestDir, signal};
use crate::support::{Logged, Process, free_port, run, usage, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn the_server_and_its_programs_see_none_of_the_services_secrets() {
    let dir = TestDir::new("");
    let secret = "hunter2-secret";
    let service = Process::start_with(
        &[
            ("DATA_DIR", dir.as_str()),
            ("ADMIN_API_KEY", secret),
            ("PGPASSWORD", secret),
            ("SOME_CLOUD_TOKEN", secret),
            ("TZ", "UTC"),
        ],
        0,
    );
    let environment = fs::read(format!("/proc/{}/environ", dir.postmaster())).expect("an environment");
    let environment = String::from_utf8_lossy(&environment);
    let names: Vec<&str> = environment.split('\0').filter_map(|variable| Some(variable.split_once('=')?.0)).collect();
    let known = ["PATH", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PWD", "OLDPWD", "SHLVL", "_"];
    // What PostgreSQL's own programs tell each other begins with PG.
    let strange = |name: &&&str| !known.contains(*name) && !name.starts_with("PG");
    assert_eq!(names.iter().find(strange), None, "{names:?}");
    assert!(!environment.contains(secret) && names.contains(&"TZ"), "{names:?}");
    drop(service);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_says_where_the_data_lie_and_whether_they_are_new() {
    let dir = TestDir::new("");
    for data in ["new", "existing"] {
        let port = free_port().to_string();
        let mut service = Logged::start(&[("DATA_DIR", dir.as_str()), ("PORT", &port)]);
        service.says("server started").await;
        let text = service.text();
        let line =
            text.lines().find(|line| line.contains("the private PostgreSQL keeps its data here")).expect("a line");
        let fields = &serde_json::from_str::<serde_json::Value>(line).expect("JSON")["fields"];
        let path = fs::canonicalize(dir.0.join("postgres/data")).expect("a path");
        assert_eq!((fields["path"].as_str(), fields["data"].as_str()), (path.to_str(), Some(data)));
        assert!(fields["version"].as_str().is_some_and(|version| version.contains('.')), "{line}");
        service.terminate();
        assert_eq!(service.exit().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_a_running_service_is_started_again_and_nothing_is_lost() {
    let dir = TestDir::new("");
    let mut service = Process::start_with(&[("DATA_DIR", dir.as_str())], 0);
    let client = service.client();
    let mut recorded = 0;
    for round in 1..=2 {
        for _ in 0..3 {
            let answer = client.post("/api/v1/usage", &usage("a", "s", 1)).await;
            recorded += 1;
            assert_eq!((answer.status, answer.json()["total"].as_i64()), (201, Some(recorded)));
        }
        signal("-KILL", &dir.postmaster());
        let key = client.key(&format!("after-{round}"));
        wait_until(async || key.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 201).await;
        recorded += 1;
        wait_until(async || client.get("/api/v1/health/ready").await.status == 200).await;
        let counted = format!("agentpay_local_postgres_restarts_total {round}");
        wait_until(async || client.get("/api/v1/metrics").await.text.lines().any(|line| line == counted)).await;
    }
    assert_eq!(client.get("/api/v1/usage/a/s").await.json()["total"], recorded);
    service.signal("-TERM");
    assert!(service.exit().await.success());
    assert!(!dir.0.join("postgres/data/postmaster.pid").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_told_to_stop_under_a_running_service_is_started_again() {
    let dir = TestDir::new("");
    let service = Process::start_with(&[("DATA_DIR", dir.as_str())], 0);
    let client = service.client();
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let process = dir.postmaster();
    // It waits for the service's own connections to end, which they do not by themselves.
    signal("-TERM", &process);
    wait_until(async || !dir.postmaster().is_empty() && dir.postmaster() != process).await;
    wait_until(async || client.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_server_is_started_again_ends_and_leaves_none_behind() {
    let dir = TestDir::new("");
    let mut service = Process::start_with(&[("DATA_DIR", dir.as_str())], 0);
    let data = dir.0.join("postgres/data");
    fs::write(data.join("recovery.signal"), "").expect("recovery.signal");
    let never = "restore_command = 'touch asked; while true; do sleep 0.05; done'\n";
    fs::write(data.join("postgresql.auto.conf"), never).expect("postgresql.auto.conf");
    signal("-KILL", &dir.postmaster());
    wait_until(async || data.join("asked").exists()).await;
    service.signal("-TERM");
    service.exit().await;
    assert!(!data.join("postmaster.pid").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_with_another_temporary_directory_finds_the_socket_of_the_service() {
    let dir = TestDir::new(&"long".repeat(30));
    let mut environment = vec![("DATA_DIR", dir.as_str())];
    let mut service = Process::start_with(&environment, 0);
    assert_eq!(service.client().post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let elsewhere = dir.0.parent().expect("a directory").join("tmp");
    fs::create_dir(&elsewhere).expect("a directory");
    environment.push(("TMPDIR", elsewhere.to_str().expect("UTF-8")));
    let output = run(&["verify"], &environment).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 pairs add up\n", "{output:?}");
    assert!(fs::read_dir(&elsewhere).expect("a directory").next().is_none());
    let socket_dir = LocalPostgres::beside(&dir.0).await.expect("a socket").get_socket().cloned().expect("a path");
    service.signal("-TERM");
    assert!(service.exit().await.success());
    fs::remove_dir(&socket_dir).expect("an empty socket directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_allows_as_many_connections_as_the_service_may_open() {
    let dir = TestDir::new("");
    let environment = [("DATA_DIR", dir.as_str()), ("DATABASE_POOL_MAX", "1000"), ("COMMIT_LANES", "64")];
    let _service = Process::start_with(&environment, 0);
    let options = LocalPostgres::beside(&dir.0).await.expect("a socket");
    let mut connection = PgConnection::connect_with(&options).await.expect("connect");
    let max: i32 = sqlx::query_scalar(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int",
    )
    .fetch_one(&mut connection)
    .await
    .expect("a number");
    // The pool, the lanes, the lane for blocked requests, the watcher of the configuration, and a few commands.
    assert!(max >= 1000 + 64 + 2 + 10, "{max}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_creates_no_database_unless_it_is_asked_to() {
    let dir = TestDir::new("");
    let environment = [("DATA_DIR", dir.as_str())];
    let create = ["keys", "create", "--label", "x"];
    for arguments in
        [["keys", "list"].as_slice(), &["verify"], &["migrate"], &create, &["keys", "revoke", "apk_01234567"]]
    {
        let output = run(arguments, &environment).await;
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && line.lines().count() == 1, "{line}");
        assert!(["DATABASE_URL", "LOCAL_POSTGRES", dir.as_str()].iter().all(|part| line.contains(part)), "{line}");
        assert!(!dir.0.exists());
    }
    let wanted = [environment[0], ("LOCAL_POSTGRES", "true")];
    assert!(run(&create, &wanted).await.status.success());
    // From now on there are data.
    let listed = run(&["keys", "list"], &environment).await;
    assert!(String::from_utf8_lossy(&listed.stdout).ends_with("  x\n"), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_others_can_reach_needs_a_database_that_was_chosen() {
    let dir = TestDir::new("");
    let port = free_port().to_string();
    let open = [("DATA_DIR", dir.as_str()), ("HOST", "0.0.0.0"), ("REQUIRE_API_KEY", "false"), ("PORT", port.as_str())];
    for arguments in [[].as_slice(), &["keys", "list"], &["migrate"]] {
        let output = run(arguments, &open).await;
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && line.lines().count() == 1, "{line}");
        assert!(["HOST 0.0.0.0", "DATABASE_URL", "LOCAL_POSTGRES"].iter().all(|part| line.contains(part)), "{line}");
        assert!(!dir.0.exists());
    }
    let service = Process::start_with(&[&open[..3], &[("LOCAL_POSTGRES", "true")]].concat(), 0);
    assert_eq!(service.client().get("/health").await.status, 200);
}
