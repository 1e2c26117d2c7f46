//! Start, stop and signals of the real binary: a start says what it waits for and can be stopped, a stop ends whatever
//! hangs, and a log without a reader delays nothing.

use std::io::{BufRead, BufReader, Read};
use std::process::Command;

use serde_json::json;

use crate::support::{
    Client, DataDir, LIMIT, Process, SilentServer, SlowPrograms, binary, empty_database, is_alive, new_database, pool,
    url, usage, wait_until,
};

/// Sends as many requests as fill any pipe, and fills the queue of the log with their paths.
async fn fill_the_log(client: &Client) {
    let path = format!("/api/v1/{}", "long".repeat(1800));
    let clients = (0..16).map(|_| {
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            for _ in 0..125 {
                assert_eq!(client.get(&path).await.status, 404);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        tokio::time::timeout(LIMIT, client).await.expect("all are answered").expect("a task");
    }
}

async fn dropped_lines(client: &Client) -> i64 {
    let metrics = client.get("/api/v1/metrics").await.text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("agentpay_log_lines_dropped_total "));
    line.expect("the metric").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_reader_delays_neither_requests_nor_the_stop() {
    let (mut service, log) = Process::spawn(&[("DATABASE_URL", &url(&new_database().await))]);
    service.is_ready().await;
    let client = service.client();
    fill_the_log(&client).await;
    assert_eq!(client.get("/health").await.status, 200);
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    assert!(dropped_lines(&client).await > 0);
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(0));
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_comes_back_is_told_how_many_lines_it_missed() {
    let (mut service, log) = Process::spawn(&[("DATABASE_URL", &url(&new_database().await))]);
    service.is_ready().await;
    let client = service.client();
    fill_the_log(&client).await;
    let dropped = dropped_lines(&client).await;
    let mut lines = BufReader::new(log).lines().map_while(Result::ok);
    let find = move || (lines.find(|line| line.contains("log lines were dropped")).expect("a line"), lines);
    let (told, lines) = tokio::task::spawn_blocking(find).await.expect("a thread");
    service.signal("-TERM");
    let rest = tokio::task::spawn_blocking(move || lines.last());
    assert_eq!(service.exit().await.code(), Some(0));
    assert!(rest.await.expect("a thread").expect("a line").contains("shutdown signal received"));
    let told: serde_json::Value = serde_json::from_str(&told).expect("a line of JSON");
    assert!(told["fields"]["lines"].as_i64().expect("a number") >= dropped, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_log_has_no_reader_any_more_goes_on() {
    let (mut service, log) = Process::spawn(&[("DATABASE_URL", &url(&new_database().await))]);
    service.is_ready().await;
    drop(log);
    let client = service.client();
    for _ in 0..10 {
        assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }
    wait_until(async || dropped_lines(&client).await > 0).await;
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_its_database_lives_says_what_it_waits_for_and_refuses_the_rest() {
    let (mut service, mut log) = Process::spawn(&[
        ("DATABASE_URL", &SilentServer::start().url("?sslmode=disable")),
        ("CORS_ALLOWED_ORIGINS", "https://shop.example"),
    ]);
    service.listens().await;
    let client = service.client().with("x-request-id", "r-1").with("origin", "https://shop.example");
    assert_eq!(client.get("/health").await.json(), json!({"status": "ok", "service": "agentpay-backend"}));
    let ready = client.get("/api/v1/health/ready").await;
    let waits = json!({"ready": false, "reason": "starting: waiting for the database"});
    assert_eq!((ready.status, ready.json()), (503, waits));
    let refused = [
        client.post("/api/v1/usage", &usage("a", "s", 1)).await,
        client.get("/api/v1/services").await,
        client.get("/nowhere").await,
    ];
    for answer in &refused {
        let error = (503, "service_unavailable".to_owned(), "the service is starting; nothing was changed".to_owned());
        assert_eq!(answer.error(), error);
        assert_eq!(answer.header("retry-after"), "1");
    }
    for answer in refused.iter().chain([&ready]) {
        let names = ["x-request-id", "x-content-type-options", "access-control-allow-origin", "server-timing"];
        assert!(names.iter().all(|name| answer.headers.contains_key(*name)), "{:?}", answer.headers);
    }
    // It is told in the log as well, after two seconds.
    let (log, said) = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        while !text.contains("the start waits for the database") {
            let mut bytes = [0; 4096];
            let read = log.read(&mut bytes).expect("the log");
            assert!(read > 0, "the log ended: {text}");
            text += &String::from_utf8_lossy(&bytes[..read]);
        }
        (log, text)
    })
    .await
    .expect("a thread");
    assert!(!said.contains("server started") && !said.contains("hunter2"), "{said}");
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(0));
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_start_that_waits_for_its_database() {
    for signal in ["-TERM", "-INT", "-HUP"] {
        let (mut service, _log) = Process::spawn(&[("DATABASE_URL", &SilentServer::start().url("?sslmode=disable"))]);
        service.listens().await;
        service.signal(signal);
        assert_eq!(service.exit().await.code(), Some(0), "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_start_whose_migrations_wait_for_a_lock() {
    let database = empty_database().await;
    let mut holder = pool(&database).begin().await.expect("a transaction");
    sqlx::query("CREATE TABLE _sqlx_migrations ()").execute(&mut *holder).await.expect("a table nobody sees yet");
    let (mut service, _log) = Process::spawn(&[("DATABASE_URL", &url(&database))]);
    service.listens().await;
    let client = service.client();
    let reason = async || client.get("/api/v1/health/ready").await.json()["reason"].clone();
    wait_until(async || reason().await == "starting: waiting for the migrations").await;
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(0));
    holder.rollback().await.expect("rollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_initdb_too() {
    let programs = SlowPrograms::new();
    // A second signal ends a service as early.
    for (arguments, signal, code) in [
        (vec![], "-TERM", 0),
        (vec!["verify"], "-TERM", 143),
        (vec!["keys", "list"], "-INT", 130),
        (vec!["migrate"], "-HUP", 129),
    ] {
        let data_dir = DataDir::new();
        let port = crate::support::free_port().to_string();
        let mut command = binary(&[
            ("DATA_DIR", data_dir.as_str()),
            ("LOCAL_POSTGRES", "true"),
            ("PATH", &programs.path()),
            ("PORT", &port),
        ]);
        let child = command.args(&arguments).stdout(std::process::Stdio::null()).spawn().expect("the binary");
        let mut process = Process { child, address: ([127, 0, 0, 1], 1).into() };
        let initdb = programs.initdb_of(&data_dir).await;
        process.signal(signal);
        assert_eq!(process.exit().await.code(), Some(code), "{arguments:?}");
        wait_until(async || !is_alive(&initdb)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_private_postgresql_starts_leaves_none_behind() {
    let data_dir = DataDir::new();
    let environment = [("DATA_DIR", data_dir.as_str())];
    let (mut service, _log) = Process::spawn(&environment);
    // The server has been started, and is not necessarily ready.
    wait_until(async || data_dir.postmaster().is_some()).await;
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(0));
    assert_eq!(data_dir.postmaster(), None);
    let (mut service, _log) = Process::spawn(&environment);
    service.is_ready().await;
    service.signal("-HUP");
    assert_eq!(service.exit().await.code(), Some(0));
    assert_eq!(data_dir.postmaster(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_aborts_and_takes_the_private_postgresql_along() {
    let data_dir = DataDir::new();
    let (mut service, _log) = Process::spawn(&[("DATA_DIR", data_dir.as_str()), ("SHUTDOWN_GRACE_MS", "600000")]);
    service.is_ready().await;
    service.signal("-TERM");
    let client = service.client();
    wait_until(async || client.get("/api/v1/health/ready").await.status == 503).await;
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(1));
    data_dir.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_told_to_ignore_hangups_ignores_them() {
    let port = crate::support::free_port();
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" HUP; exec "$0""#, env!("CARGO_BIN_EXE_agentpay-billing")]);
    command.env("DATABASE_URL", url(&new_database().await)).env("PORT", port.to_string());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("the binary");
    let mut log = child.stdout.take().expect("stdout");
    let mut service = Process { child, address: ([127, 0, 0, 1], port).into() };
    service.is_ready().await;
    service.signal("-HUP");
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(0));
    let mut told = String::new();
    log.read_to_string(&mut told).expect("the log");
    assert!(told.contains("SIGTERM") && !told.contains("SIGHUP"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_the_service_and_all_of_its_postgresql_is_a_clean_stop() {
    let data_dir = DataDir::new();
    let (mut service, _log) = Process::spawn(&[("DATA_DIR", data_dir.as_str())]);
    service.is_ready().await;
    let client = service.client();
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    // What systemd does to a unit with KillMode=control-group, in one call.
    let mut processes = data_dir.servers();
    processes.push(service.child.id().to_string());
    assert!(Command::new("kill").arg("-TERM").args(&processes).status().expect("kill").success());
    assert_eq!(service.exit().await.code(), Some(0));
    data_dir.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_although_the_database_is_frozen() {
    let data_dir = DataDir::new();
    let (mut service, _log) = Process::spawn(&[("DATA_DIR", data_dir.as_str())]);
    service.is_ready().await;
    let client = service.client();
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let processes = data_dir.servers();
    assert!(Command::new("kill").arg("-STOP").args(&processes).status().expect("kill").success());
    let write = tokio::spawn(async move { client.post("/api/v1/usage", &usage("a", "s", 1)).await.status });
    service.signal("-TERM");
    assert_eq!(service.exit().await.code(), Some(1));
    write.abort();
}
