//! The private local PostgreSQL, against real servers in temporary directories.
//! Each test has a directory of its own and leaves neither a server nor a file behind, even when it fails.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentpay_billing::local_postgres::{LocalPostgres, LocalPostgresError};
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use crate::support::{Logged, Process, free_port, run, usage, wait_until};

/// Throw-away servers need not survive a power failure.
const SETTINGS: &[(&str, &str)] = &[("fsync", "off")];

#[tokio::test]
async fn a_fresh_directory_becomes_a_server_with_the_database_agentpay() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    let mut connection = PgConnection::connect(&postgres.url("agentpay")).await.expect("connect by URL");
    let row = sqlx::query(
        "SELECT current_user::text, current_database()::text, current_setting('listen_addresses'), \
         current_setting('fsync'), current_setting('lc_collate'), current_setting('server_encoding')",
    )
    .fetch_one(&mut connection)
    .await
    .expect("query");
    let values: Vec<String> = (0..row.len()).map(|column| row.get(column)).collect();
    assert_eq!(values, ["agentpay", "agentpay", "", "off", "C", "UTF8"]);
    let mode = fs::metadata(postgres.socket_dir()).expect("socket directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(connection);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_second_service_on_the_same_directory_is_refused() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    let error = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("in use");
    assert!(matches!(error, LocalPostgresError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("is in use by another agentpay-billing"), "{error}");
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_left_running_by_a_killed_service_is_taken_over() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    let process = dir.postmaster();
    // Dropping it is what a kill does: the lock is freed, the server runs on.
    drop(postgres);
    let postgres = start(&dir).await;
    assert_eq!(dir.postmaster(), process);
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_killed_server_is_started_again_with_its_data() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    let process = dir.postmaster();
    signal("-KILL", &process);
    drop(postgres);
    let postgres = start(&dir).await;
    assert_ne!(dir.postmaster(), process);
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_that_is_shutting_down_is_waited_for_and_started_again() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    // A smart shutdown lasts until the last connection ends, and refuses new ones meanwhile.
    let connection = PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect("connect");
    let process = dir.postmaster();
    signal("-TERM", &process);
    drop(postgres);
    let (postgres, ()) = tokio::join!(start(&dir), async { connection.close().await.expect("close") });
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_stopped_server_comes_back_with_its_data() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop().await.expect("stop");
    let postgres = start(&dir).await;
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn an_immediate_stop_loses_nothing_that_was_committed() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop_immediately().await.expect("stop immediately");
    PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect_err("stopped");
    postgres.start_again().await.expect("start again");
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_stale_process_id_that_now_belongs_to_something_else_is_no_server() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    postgres.stop_immediately().await.expect("stop immediately");
    drop(postgres);
    // This very test process is alive, and no PostgreSQL.
    let data = dir.0.join("postgres/data");
    let stale = format!("{}\n{}\n0\n5432\n\n\n0 0\n", std::process::id(), data.display());
    fs::write(data.join("postmaster.pid"), stale).expect("write postmaster.pid");
    let postgres = start(&dir).await;
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_gets_its_socket_elsewhere() {
    let dir = TestDir::new(&format!("{}/it's $HOME, \"quoted\"", "long".repeat(30)));
    let postgres = start(&dir).await;
    let socket_dir = postgres.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(&dir.0));
    assert!(socket_dir.as_os_str().len() < 90);
    keep_a_row(&postgres).await;
    let connected = PgConnection::connect(&postgres.url("agentpay")).await;
    connected.expect("connect by URL").close().await.expect("close");
    postgres.stop().await.expect("stop");
    fs::remove_dir(&socket_dir).expect("an empty socket directory");
}

#[tokio::test]
async fn recovery_takes_as_long_as_it_takes_while_the_server_says_so() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop_immediately().await.expect("stop immediately");
    // Recovery from an archive that does not answer until the file is there: for the server it is slow recovery.
    let data = dir.0.join("postgres/data");
    fs::write(data.join("recovery.signal"), "").expect("recovery.signal");
    let slow = "restore_command = 'touch asked; while ! [ -e go ]; do sleep 0.05; done; false'\n";
    fs::write(data.join("postgresql.auto.conf"), slow).expect("postgresql.auto.conf");
    let limit = Duration::from_secs(1);
    let recovering = postgres.start_again_unless_silent(limit);
    let going_on = async {
        wait_until(async || data.join("asked").exists()).await;
        let began = Instant::now();
        // It takes longer than the server may be silent.
        wait_until(async || began.elapsed() > 8 * limit).await;
        fs::write(data.join("go"), "").expect("go");
    };
    let (recovered, ()) = tokio::join!(recovering, going_on);
    recovered.expect("it recovered");
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    signal("-STOP", &dir.postmaster());
    let error = postgres.start_again_unless_silent(Duration::from_secs(1)).await.expect_err("silence");
    signal("-CONT", &dir.postmaster());
    assert!(matches!(error, LocalPostgresError::NotReady { limit_s: 1, .. }), "{error}");
    postgres.start_again().await.expect("it answers");
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_that_was_left_running_with_too_few_connections_is_started_again_with_more() {
    let dir = TestDir::new("");
    let few = LocalPostgres::start(&dir.0, &[("fsync", "off"), ("max_connections", "20")]).await.expect("start");
    keep_a_row(&few).await;
    drop(few);
    let more = LocalPostgres::start(&dir.0, &[("fsync", "off"), ("max_connections", "30")]).await.expect("start");
    assert_eq!(rows(&more).await, 1);
    let mut connection = PgConnection::connect_with(&more.connect_options("agentpay")).await.expect("connect");
    let max: String = sqlx::query_scalar("SHOW max_connections").fetch_one(&mut connection).await.expect("a number");
    assert_eq!(max, "30");
    drop(connection);
    more.stop().await.expect("stop");
}

#[tokio::test]
async fn a_link_out_of_the_data_dir_is_not_followed() {
    let dir = TestDir::new("");
    start(&dir).await.stop().await.expect("stop");
    let (home, elsewhere) = (dir.0.join("postgres"), dir.0.join("elsewhere"));
    fs::rename(&home, &elsewhere).expect("move");
    symlink(&elsewhere, &home).expect("a link");
    let error = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("a link");
    let line = error.to_string();
    assert!(matches!(error, LocalPostgresError::Linked { .. }) && line.contains("elsewhere"), "{line}");
    fs::remove_file(&home).expect("remove the link");
    fs::rename(&elsewhere, &home).expect("what the line says");
    start(&dir).await.stop().await.expect("stop");
}

#[tokio::test]
async fn data_that_their_server_could_not_reach_lie_nowhere_else() {
    if !we_are_root("another user runs the server") {
        return;
    }
    let dir = TestDir::new("closed/data");
    let closed = dir.0.parent().expect("a directory");
    fs::create_dir_all(closed).expect("directories");
    fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).expect("closed");
    let line = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("out of reach").to_string();
    let closed = fs::canonicalize(closed).expect("a path");
    assert!(line.contains(&format!("cannot enter {} (mode 0700)", closed.display())) && !line.contains('\n'), "{line}");
    assert!(line.contains(&format!("`chmod o+x {}`", closed.display())), "{line}");
    assert!(!dir.0.join("postgres").exists());
    assert_eq!(fs::metadata(&closed).expect("metadata").permissions().mode() & 0o777, 0o700, "it is not ours to open");
    // The remedy that the line names.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o701)).expect("chmod o+x");
    start(&dir).await.stop().await.expect("stop");
}

#[tokio::test]
async fn data_of_a_user_without_a_name_are_served() {
    if !we_are_root("only root can give files away") {
        return;
    }
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop().await.expect("stop");
    let given = Command::new("chown").arg("-R").arg(NAMELESS).arg(dir.0.join("postgres")).status();
    assert!(given.expect("chown").success());
    let postgres = start(&dir).await;
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_name_is_told_how_to_get_one() {
    if !we_are_root("only root can become another user") {
        return;
    }
    let dir = TestDir::new("");
    fs::create_dir(&dir.0).expect("a directory");
    let program = dir.0.join("program");
    fs::copy(env!("CARGO_BIN_EXE_agentpay-billing"), &program).expect("a copy that everybody reaches");
    assert!(Command::new("chown").arg(NAMELESS).arg(&dir.0).status().expect("chown").success());
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").expect("PATH")).uid(12345).gid(12345).current_dir(&dir.0);
    command.env("DATA_DIR", dir.0.join("data")).env("PORT", free_port().to_string());
    let output = tokio::task::spawn_blocking(move || command.output().expect("the binary")).await.expect("a thread");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(line.contains("user with id 12345") && line.contains("/etc/passwd"), "{line}");
}

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
    assert!(tokio::task::block_in_place(|| service.child.wait()).expect("exit").success());
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
    tokio::task::block_in_place(|| service.child.wait()).expect("exit");
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
    assert!(tokio::task::block_in_place(|| service.child.wait()).expect("exit").success());
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
    // The pool, the lanes, their waiting room, the watcher of limits and a few commands beside.
    assert!(max >= 1000 + 64 + 2 + 10, "{max}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_begins_no_empty_database_that_nobody_asked_for() {
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
    assert!(String::from_utf8_lossy(&listed.stdout).contains("\tx\n"), "{listed:?}");
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

#[tokio::test]
async fn data_of_a_version_that_is_not_installed_is_a_clear_error() {
    let dir = TestDir::new("");
    start(&dir).await.stop().await.expect("stop");
    fs::write(dir.0.join("postgres/data/PG_VERSION"), "13\n").expect("write PG_VERSION");
    let error = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("other version");
    let line = error.to_string();
    assert!(line.contains("was made by PostgreSQL 13") && !line.contains('\n'), "{line}");
}

#[tokio::test]
async fn a_data_dir_that_cannot_be_made_is_a_clear_error() {
    let error = LocalPostgres::start(Path::new("/dev/null/data"), SETTINGS).await.expect_err("not writable");
    let line = error.to_string();
    assert!(line.starts_with("DATA_DIR /dev/null/data is not writable") && !line.contains('\n'), "{line}");
}

/// A user and a group that no machine has a name for.
const NAMELESS: &str = "12345:12345";

/// Whether this test can provoke its case; says so if it cannot.
fn we_are_root(why: &str) -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !is_root {
        eprintln!("skipped: it has to be root, because {why}");
    }
    is_root
}

async fn start(dir: &TestDir) -> LocalPostgres {
    LocalPostgres::start(&dir.0, SETTINGS).await.expect("start")
}

async fn keep_a_row(postgres: &LocalPostgres) {
    let mut connection = PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect("connect");
    sqlx::raw_sql("CREATE TABLE kept (value int); INSERT INTO kept VALUES (1)")
        .execute(&mut connection)
        .await
        .expect("insert");
}

async fn rows(postgres: &LocalPostgres) -> i64 {
    let mut connection = PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect("connect");
    sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connection).await.expect("count")
}

fn signal(signal: &str, process: &str) {
    // Quiet, because a server that is gone already is fine.
    let status = Command::new("kill").args([signal, process]).stderr(Stdio::null()).status();
    status.expect("run kill");
}

/// A DATA_DIR, not made yet, in a temporary directory that goes away with its server.
struct TestDir(PathBuf);

impl TestDir {
    fn new(name: &str) -> TestDir {
        TestDir(std::env::temp_dir().join(format!("agentpay-test-{}", Uuid::new_v4().simple())).join(name))
    }

    fn as_str(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    fn postmaster(&self) -> String {
        let pid_file = fs::read_to_string(self.0.join("postgres/data/postmaster.pid")).unwrap_or_default();
        pid_file.lines().next().unwrap_or_default().to_owned()
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let process = self.postmaster();
        if !process.is_empty() && process != std::process::id().to_string() {
            signal("-QUIT", &process);
        }
        let ours = |dir: &&Path| dir.parent() == Some(&std::env::temp_dir());
        if let Some(dir) = self.0.ancestors().find(ours) {
            // What a dying server still writes may stay; a temporary directory is cleared by the system.
            let _ = fs::remove_dir_all(dir);
        }
    }
}
