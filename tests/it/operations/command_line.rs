//! What the commands write, where to, and how they end when their output is closed.

use std::fs::File;
use std::process::{Output, Stdio};

use crate::support::{DataDir, SilentServer, binary, new_database, pool, run, url};

/// Runs a command whose standard output is `output`.
async fn run_into(output: Stdio, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = binary(environment);
    command.args(arguments).stdout(output).stderr(Stdio::piped());
    let run = move || command.spawn().expect("the binary").wait_with_output().expect("its end");
    tokio::task::spawn_blocking(run).await.expect("a thread")
}

/// A pipe whose reader has gone.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full_device() -> Stdio {
    File::options().write(true).open("/dev/full").expect("/dev/full").into()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_a_command_quietly() {
    let database = url(&new_database().await);
    let environment = [("DATABASE_URL", database.as_str())];
    run(&["keys", "create", "--label", "a"], &environment).await;
    for arguments in [["keys", "list"].as_slice(), &["verify"], &["migrate"], &["settlements", "export"]] {
        let output = run_into(closed_pipe(), arguments, &environment).await;
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{arguments:?}");
        let output = run_into(full_device(), arguments, &environment).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).starts_with("standard output cannot be written to: "), "{}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_reader_is_gone_stops_the_postgresql_it_started() {
    let data_dir = DataDir::new();
    let output =
        run_into(closed_pipe(), &["migrate"], &[("DATA_DIR", data_dir.as_str()), ("LOCAL_POSTGRES", "true")]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    assert_eq!(data_dir.postmaster(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_with_findings_fails_although_its_output_is_closed() {
    let options = new_database().await;
    sqlx::query("INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a')")
        .execute(&pool(&options))
        .await
        .expect("an agent");
    let database = url(&options);
    let output = run_into(closed_pipe(), &["verify"], &[("DATABASE_URL", &database)]).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_could_not_be_shown_is_not_kept() {
    let options = new_database().await;
    let database = url(&options);
    for output in [full_device(), closed_pipe()] {
        let output = run_into(output, &["keys", "create", "--label", "lost"], &[("DATABASE_URL", &database)]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).starts_with("the key could not be shown and is revoked again: "),
            "{}",
            stderr(&output)
        );
        let keys: i64 =
            sqlx::query_scalar("SELECT count(*) FROM api_keys").fetch_one(&pool(&options)).await.expect("a number");
        assert_eq!(keys, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_whose_key_could_not_be_shown_leaves_the_old_key_as_it_was() {
    let options = new_database().await;
    let database = url(&options);
    let environment = [("DATABASE_URL", database.as_str())];
    let made = run(&["keys", "create", "--label", "kept"], &environment).await;
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let prefix = &made["key"].as_str().expect("a key")[..12];
    for overlap in ["3600", "0"] {
        for output in [full_device(), closed_pipe()] {
            let rotate = ["keys", "rotate", prefix, "--overlap-seconds", overlap];
            let output = run_into(output, &rotate, &environment).await;
            let told = stderr(&output);
            assert!(told.starts_with("the key could not be shown and is revoked again: "), "{told}");
            let keys = "SELECT prefix::text, expires_at IS NULL AND overlap_until IS NULL FROM api_keys";
            let keys: Vec<(String, bool)> = sqlx::query_as(keys).fetch_all(&pool(&options)).await.expect("keys");
            assert_eq!(keys, [(prefix.to_owned(), true)]);
        }
    }
    let operations = "SELECT count(*) FROM audit_log WHERE operation = 'api_key.rotation_cancelled'";
    let cancelled: i64 = sqlx::query_scalar(operations).fetch_one(&pool(&options)).await.expect("a number");
    assert_eq!(cancelled, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_keys_that_were_made_within_a_millisecond_has_each_of_them_once() {
    let options = new_database().await;
    let keys = "INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at)
        SELECT 'public', 'apk_' || lpad(to_hex(n), 8, '0'), sha256(n::text::bytea), 'label',
               timestamptz '2026-01-01 00:00:00.000001+00' + n / 100 * interval '7 microseconds'
        FROM generate_series(1, 2500) AS n";
    sqlx::query(keys).execute(&pool(&options)).await.expect("keys");
    let database = url(&options);
    let listed = run(&["keys", "list"], &[("DATABASE_URL", &database)]).await;
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    let mut prefixes: Vec<&str> =
        listed.lines().skip(1).map(|line| line.split(' ').next().expect("a prefix")).collect();
    prefixes.sort_unstable();
    let expected: Vec<String> = (1..=2500).map(|number| format!("apk_{number:08x}")).collect();
    assert_eq!(prefixes, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_tls_is_named_with_the_reason() {
    for (server, parameters, reason) in [
        (SilentServer::answering(b"N"), "?sslmode=require", "server does not support TLS"),
        (SilentServer::answering(b"SHTTP/1.1 400 Bad Request\r\n\r\n"), "?sslmode=prefer", "TLS failed: "),
    ] {
        let output = run(&["verify"], &[("DATABASE_URL", &server.url(parameters))]).await;
        let told = stderr(&output);
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        let named = "the database billing on 127.0.0.1 cannot be reached: ";
        assert!(told.starts_with(named) && told.contains(reason) && told.contains("sslmode"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}
