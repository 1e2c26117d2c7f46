//! HTTP contract, section 19.1: a start that cannot succeed is one line on stderr and exit code 1, and keeps its secrets.

use std::process::Output;

use sqlx::{ConnectOptions, Connection};

use crate::support::{Process, binary, empty_database, free_port, new_database, run, url};

/// Appears in the environment of every start below, and in no line.
const SECRET: &str = "hunter2-secret";

/// The one line, of a start that failed as it must.
fn line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!stderr.contains(SECRET) && !stdout.contains(SECRET), "{stderr}{stdout}");
    assert!(!stdout.contains("server started"), "{stdout}");
    stderr.trim_end().to_owned()
}

async fn start(environment: &[(&str, &str)]) -> String {
    line(&run(&[], environment).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_accepted_is_named_with_what_is() {
    let switch = "true, 1, yes, on, false, 0, no or off";
    let hour = "an integer between 1-3600000";
    let cases = [
        ("PORT", "an integer between 1-65535", ["0", "65536", "3001.0", "03001", "abc", "-1"].as_slice()),
        ("HOST", "an IP address or localhost", &["example.com", "127.0.0.1:80"]),
        ("DATABASE_POOL_MAX", "an integer between 2-1000", &["1", "1001", "x"]),
        ("MIGRATE_ON_START", switch, &["maybe"]),
        ("REQUIRE_API_KEY", "true or false", &["1", "yes"]),
        ("FORWARDED_HEADER", "x-forwarded-for or forwarded", &["x-real-ip"]),
        ("REQUIRE_REGISTERED_SERVICES", switch, &["maybe"]),
        ("TRUST_PROXY", "an integer between 0-100", &["101", "-1", "all"]),
        ("IDEMPOTENCY_CACHE_TTL_MS", "an integer between 1000-31536000000", &["0", "999", "31536000001", "1e3"]),
        ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "an integer between 1-1000000000000", &["0", "1000000000001"]),
        ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "an integer between 1-1000000000000", &["0", "+5"]),
        ("IDEMPOTENCY_MAX_BYTES_PER_CALLER", "an integer between 1000000-1000000000000000", &["0", "999999", "4G"]),
        ("JANITOR_INTERVAL_MS", "an integer between 10-3600000", &["9", "3600001"]),
        ("COMMIT_LANES", "an integer between 1-64", &["0", "65"]),
        ("COMMIT_BATCH_MAX", "an integer between 1-10000", &["0", "10001"]),
        ("COMMIT_QUEUE_MAX", "an integer between 1-1000000", &["0", "1000001"]),
        ("REQUEST_TIMEOUT_MS", "an integer between 100-3600000", &["0", "99", "3600001"]),
        ("HEADERS_TIMEOUT_MS", hour, &["0", "3600001"]),
        ("KEEPALIVE_TIMEOUT_MS", hour, &["0", "3600001"]),
        ("SHUTDOWN_GRACE_MS", "an integer between 0-600000", &["600001", "5s"]),
        ("LOG_LEVEL", "fatal, error, warn, info, debug, trace or silent", &["loud"]),
        ("LOG_FORMAT", "json or pretty", &["xml", "JSON"]),
    ];
    for (name, accepted, values) in cases {
        for value in values {
            let shown = start(&[(name, value), ("ADMIN_API_KEY", SECRET)]).await;
            assert_eq!(shown, format!("{name} must be {accepted}, got \"{value}\""));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_do_not_go_together_are_both_named() {
    let both = start(&[("REQUIRE_API_KEY", "true")]).await;
    assert!(both.contains("REQUIRE_API_KEY") && both.contains("ADMIN_API_KEY"), "{both}");
    let both = start(&[("HOST", "0.0.0.0"), ("ADMIN_API_KEY", SECRET)]).await;
    assert!(both.contains("HOST") && both.contains("REQUIRE_API_KEY"), "{both}");
    let shown = start(&[("HEADERS_TIMEOUT_MS", "1000"), ("KEEPALIVE_TIMEOUT_MS", "5000")]).await;
    assert_eq!(shown, "HEADERS_TIMEOUT_MS must be at least KEEPALIVE_TIMEOUT_MS where both are set, got 1000 and 5000");
    let url = format!("mysql://user:{SECRET}@localhost/db");
    assert_eq!(start(&[("DATABASE_URL", &url)]).await, "DATABASE_URL must be a postgres:// or postgresql:// URL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_with_its_host() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port().to_string();
    let shown = start(&[("PORT", &port), ("DATABASE_URL", &url(&new_database().await))]).await;
    assert!(shown.starts_with(&format!("127.0.0.1:{port} cannot be listened on")), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_is_named_with_its_host() {
    let database = new_database().await.database("no_such_database").password(SECRET);
    // A missing database does not appear by waiting.
    let shown = start(&[("PORT", &free_port().to_string()), ("DATABASE_URL", &url(&database))]).await;
    let names_both = shown.starts_with("the database no_such_database on ") && shown.contains(" cannot be reached: ");
    assert!(names_both, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_given_up_after_30_s() {
    let url = format!("postgres://somebody:{SECRET}@127.0.0.1:{}/billing", free_port());
    let began = std::time::Instant::now();
    let shown = start(&[("PORT", &free_port().to_string()), ("DATABASE_URL", &url)]).await;
    assert!(shown.starts_with("the database billing on 127.0.0.1 cannot be reached"), "{shown}");
    assert!((30..90).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_migrate_on_start_pending_migrations_are_named_and_migrate_applies_them() {
    let database = url(&empty_database().await);
    let port = free_port().to_string();
    let environment = [("DATABASE_URL", database.as_str()), ("MIGRATE_ON_START", "false"), ("PORT", &port)];
    let shown = start(&environment).await;
    assert!(shown.starts_with("pending migrations: 0001_tenants, 0002_services"), "{shown}");
    for arguments in [["keys", "list"].as_slice(), &["verify"]] {
        assert_eq!(line(&run(arguments, &environment).await), shown, "{arguments:?}");
    }
    let migrated = run(&["migrate"], &environment).await;
    assert_eq!(String::from_utf8_lossy(&migrated.stdout), "the schema is up to date\n");
    let process = Process::start_with(&environment[..2], 0);
    assert_eq!(process.client().get("/api/v1/health/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_newer_than_the_program_is_refused() {
    let database = new_database().await;
    let mut connection = database.connect().await.expect("connect");
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'from the future', true, '', 0)",
    )
    .execute(&mut connection)
    .await
    .expect("a migration of a newer program");
    connection.close().await.expect("close");
    let shown = start(&[("DATABASE_URL", &url(&database)), ("PORT", &free_port().to_string())]).await;
    assert_eq!(shown, "the database has migrations this program does not know: 9999; run a newer program");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_dir_that_is_in_use_or_not_writable_says_what_to_do() {
    let not_writable = start(&[("DATA_DIR", "/dev/null/data"), ("PORT", &free_port().to_string())]).await;
    assert!(not_writable.starts_with("DATA_DIR /dev/null/data is not writable"), "{not_writable}");
    assert!(not_writable.contains("set DATABASE_URL"), "{not_writable}");
    let dir = std::env::temp_dir().join(format!("agentpay-used-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).expect("a directory");
    let lock = std::fs::File::create(dir.join("lock")).expect("a lock");
    lock.lock().expect("locked");
    let data_dir = dir.to_str().expect("a path");
    let in_use = start(&[("DATA_DIR", data_dir), ("PORT", &free_port().to_string())]).await;
    assert!(in_use.starts_with(&format!("DATA_DIR {data_dir} is in use by another agentpay-billing")), "{in_use}");
    std::fs::remove_dir_all(&dir).expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_address_with_keys_explicitly_off_starts_with_a_warning() {
    let database = url(&new_database().await);
    let port = free_port().to_string();
    let mut command = binary(&[("DATABASE_URL", &database), ("HOST", "0.0.0.0"), ("REQUIRE_API_KEY", "false")]);
    let mut child = command.env("PORT", &port).stdout(std::process::Stdio::piped()).spawn().expect("the binary");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("stdout")));
    let log: Vec<String> = tokio::task::block_in_place(|| {
        let mut log = Vec::new();
        for line in lines.map_while(Result::ok) {
            log.push(line);
            if log.last().is_some_and(|line| line.contains("server started")) {
                break;
            }
        }
        log
    });
    child.kill().expect("kill");
    child.wait().expect("exit");
    assert!(log.iter().any(|line| line.contains("WARN") && line.contains("REQUIRE_API_KEY")), "{log:?}");
}
