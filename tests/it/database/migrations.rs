//! Migrations beside others who use the database, with few rights, and in any schema.

use agentpay_billing::store::{MIGRATOR, migrations};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqlSafeStr};

use crate::support::{
    Logged, Process, Service, empty_database, free_port, needs_one_cell, new_database, pool, run, url, usage,
    wait_until,
};

async fn execute(database: &PgConnectOptions, sql: impl Into<String>) {
    let mut connection = database.connect().await.expect("connect");
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(&mut connection).await.expect("SQL");
    connection.close().await.expect("close");
}

/// A new role that may do nothing yet, in the same database.
async fn new_role(database: &PgConnectOptions) -> (String, PgConnectOptions) {
    let role = format!("it_{}", uuid::Uuid::new_v4().simple());
    execute(database, format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'")).await;
    let options = database.clone().username(&role).password(&role);
    (role, options)
}

fn printed(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The migrations of the program and one more, in a transaction or not.
fn with_one_more(sql: &'static str, no_tx: bool) -> Migrator {
    let one_more =
        Migration::new(9000, "one more".into(), MigrationType::ReversibleUp, AssertSqlSafe(sql).into_sql_str(), no_tx);
    Migrator::with_migrations(MIGRATOR.iter().cloned().chain([one_more]).collect())
}

async fn reads(connection: &mut PgConnection) {
    sqlx::query("SELECT FROM usage_counters").execute(connection).await.expect("a read");
}

/// How many sessions wait for a lock on a table or for the end of a transaction, and have for a while.
const STUCK: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query_start < clock_timestamp() - interval '3 s'";
const WAITING: &str = "SELECT count(*) FROM pg_locks
    WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn number(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.expect(sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn later_transactions_pass_a_migration_that_waits_for_a_table() {
    let database = new_database().await;
    let (mut old, mut new) = (database.connect().await.expect("connect"), database.connect().await.expect("connect"));
    let mut old = old.begin().await.expect("begin");
    reads(&mut old).await;
    let mut migrating = database.connect().await.expect("connect");
    let migration = tokio::spawn(async move {
        let migrator = with_one_more("ALTER TABLE usage_counters ADD COLUMN note text", false);
        migrations::apply_from(&migrator, &mut migrating).await
    });
    wait_until(async || number(&mut old, WAITING).await > 0).await;
    // It queues behind the migration, which gives up.
    tokio::time::timeout(crate::support::LIMIT, reads(&mut new)).await.expect("a read while the older one goes on");
    assert!(!migration.is_finished());
    old.rollback().await.expect("rollback");
    migration.await.expect("a task").expect("the migration");
    sqlx::query("SELECT note FROM usage_counters").execute(&mut new).await.expect("the column");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_outside_of_a_transaction_waits_as_long_as_it_has_to() {
    let database = new_database().await;
    let (mut old, mut new) = (database.connect().await.expect("connect"), database.connect().await.expect("connect"));
    // CREATE INDEX CONCURRENTLY waits for all transactions with an older snapshot.
    let mut old = old.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("begin");
    reads(&mut old).await;
    let mut migrating = database.connect().await.expect("connect");
    let migration = tokio::spawn(async move {
        let migrator = with_one_more("CREATE INDEX CONCURRENTLY one_more ON usage_counters (version)", true);
        migrations::apply_from(&migrator, &mut migrating).await
    });
    wait_until(async || number(&mut new, STUCK).await > 0).await;
    reads(&mut new).await;
    assert!(!migration.is_finished());
    old.rollback().await.expect("rollback");
    migration.await.expect("a task").expect("the migration");
    let valid = "SELECT count(*) FROM pg_index WHERE indexrelid = 'one_more'::regclass AND indisvalid";
    assert_eq!(number(&mut new, valid).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_table_says_for_whom() {
    let database = new_database().await;
    let mut connection = database.connect().await.expect("connect");
    let versions: Vec<i64> = MIGRATOR.iter().map(|migration| migration.version).collect();
    let before_the_last = versions.iter().rev().find(|version| Some(*version) != versions.last()).copied();
    MIGRATOR.undo(&mut connection, before_the_last.unwrap_or(0)).await.expect("down");
    let mut holder = connection.begin().await.expect("begin");
    sqlx::query("LOCK TABLE _sqlx_migrations IN SHARE MODE").execute(&mut *holder).await.expect("a lock");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *holder).await.expect("a number");
    let (url, port) = (url(&database), free_port().to_string());
    let service = Logged::start(&[("DATABASE_URL", url.as_str()), ("PORT", port.as_str())]);
    service.says("a migration waits for a lock").await;
    let text = service.text();
    assert!(text.contains(&format!("process {pid}, which has had _sqlx_migrations for ")), "{text}");
    holder.rollback().await.expect("rollback");
    service.says("server started").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_pending_the_right_to_create_is_not_needed() {
    let database = new_database().await;
    let (role, limited) = new_role(&database).await;
    execute(
        &database,
        format!(
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};
             REVOKE INSERT, UPDATE, DELETE ON _sqlx_migrations FROM {role}"
        ),
    )
    .await;
    let database_url = url(&limited);
    let environment = [("DATABASE_URL", database_url.as_str())];
    for (arguments, expected) in [
        (["migrate"].as_slice(), "the schema is up to date\n"),
        (&["keys", "list"], "PREFIX  TENANT  CREATED  LABEL\n"),
        (&["verify"], "0 pairs add up\n"),
    ] {
        let output = run(arguments, &environment).await;
        assert_eq!((output.status.code(), printed(&output).as_str()), (Some(0), expected), "{arguments:?}");
    }
    let process = Process::start_with(&environment, 0);
    assert_eq!(process.client().post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_only_look_leave_an_empty_database_empty() {
    let database = empty_database().await;
    let database_url = url(&database);
    for arguments in [["keys", "list"].as_slice(), &["verify"], &["keys", "revoke", "apk_01234567"]] {
        let output = run(arguments, &[("DATABASE_URL", database_url.as_str())]).await;
        let line = printed(&output);
        assert!(output.status.code() == Some(1) && line.starts_with("pending migrations: 0001_"), "{line}");
    }
    let mut connection = database.connect().await.expect("connect");
    let tables =
        "SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = 'public'";
    assert_eq!(number(&mut connection, tables).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_not_the_one_that_was_applied_is_named() {
    for (change, expected) in [
        ("SET checksum = '' WHERE version = 1", "the database was made with another text of these migrations: 0001_"),
        ("SET success = false WHERE version = 1", "migrations that were begun and did not end: 1;"),
    ] {
        let database = new_database().await;
        execute(&database, format!("UPDATE _sqlx_migrations {change}")).await;
        let (url, port) = (url(&database), free_port().to_string());
        for arguments in [[].as_slice(), &["migrate"], &["keys", "list"], &["verify"]] {
            let output = run(arguments, &[("DATABASE_URL", url.as_str()), ("PORT", &port)]).await;
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            let shown = String::from_utf8_lossy(&output.stderr);
            assert!(shown.starts_with(expected) && shown.lines().count() == 1, "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_live_in_two_schemas_of_one_database_and_none_is_called_public() {
    if needs_one_cell("the cells of a test are databases") {
        return;
    }
    let database = empty_database().await;
    execute(&database, "DROP SCHEMA public").await;
    // The roles stay behind, as the databases do.
    let mut owners = Vec::new();
    for schema in ["app", "\"Other app\""] {
        let (role, options) = new_role(&database).await;
        let own = format!("CREATE SCHEMA {schema} AUTHORIZATION {role}; ALTER ROLE {role} SET search_path = {schema}");
        execute(&database, own).await;
        owners.push(options);
    }
    for (number, options) in owners.iter().enumerate() {
        let database_url = url(options);
        let environment = [("DATABASE_URL", database_url.as_str())];
        let output = run(&["migrate"], &environment).await;
        assert_eq!(printed(&output), "the schema is up to date\n");
        let own = pool(options);
        MIGRATOR.undo(&own, 0).await.expect("down");
        MIGRATOR.run(&own).await.expect("up");
        own.close().await;
        let service = Service::start_on(options.clone(), &[]).await;
        let client = service.client();
        let offer = serde_json::json!({ "serviceId": "s", "priceStroops": 2 });
        assert_eq!(client.post("/api/v1/services", &offer).await.status, 201);
        let recorded = client.key("k").post("/api/v1/usage", &usage("a", "s", number as i64 + 1)).await;
        assert_eq!(recorded.json()["total"], number + 1);
        let again = client.key("k").post("/api/v1/usage", &usage("a", "s", number as i64 + 1)).await;
        assert!(again.replayed && again.same(&recorded), "{again:?}");
        let pair = serde_json::json!({ "agent": "a", "serviceId": "s" });
        assert_eq!(client.post("/api/v1/settle", &pair).await.json()["billedStroops"], 2 * (number + 1));
        assert_eq!(client.get("/api/v1/stats").await.status, 200);
        assert_eq!(client.get("/api/v1/metrics").await.status, 200);
        service.janitor.run_once().await.expect("a round");
        service.verify().await;
        let output = run(&["verify"], &environment).await;
        assert_eq!(printed(&output), "1 pairs add up\n");
    }
}
