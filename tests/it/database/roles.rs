//! The roles and rights of `deploy/postgres`: each can do its work, and nothing else.

use agentpay_billing::local_postgres::LocalPostgres;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};

use crate::operations::readme;
use crate::support::{DataDir, Receiver, Service, needs_one_cell, pool, run, store_records, url, usage};

const ROLES: &str = include_str!("../../../deploy/postgres/roles.sql");

/// A database set up as the two files say. Roles belong to a whole server, so it has one of its own.
struct Deployment {
    postgres: LocalPostgres,
    superuser: PgPool,
    _dir: DataDir,
}

impl Deployment {
    async fn start() -> Self {
        let dir = DataDir::new();
        let postgres = LocalPostgres::start(dir.path(), &[("fsync", "off")]).await.expect("a PostgreSQL");
        let deployment = Self { superuser: pool(&postgres.connect_options("agentpay")), postgres, _dir: dir };
        deployment.superuser.execute(ROLES).await.expect("roles.sql");
        deployment.migrate_and_grant().await;
        // Both can be repeated.
        deployment.superuser.execute(ROLES).await.expect("roles.sql");
        deployment.migrate_and_grant().await;
        deployment
    }

    async fn migrate_and_grant(&self) {
        let owner = url(&self.options("agentpay_owner"));
        let migrated = run(&["migrate", "--grants"], &[("DATABASE_URL", &owner)]).await;
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }

    fn options(&self, role: &str) -> PgConnectOptions {
        self.postgres.connect_options("agentpay").username(role)
    }

    fn pool(&self, role: &str) -> PgPool {
        pool(&self.options(role))
    }

    /// A login of a person with a role.
    async fn login(&self, person: &str, role: &str) -> PgPool {
        let create = format!("CREATE ROLE {person} LOGIN IN ROLE {role}");
        self.superuser.execute(AssertSqlSafe(create)).await.expect("a login");
        self.pool(person)
    }

    async fn stop(self) {
        self.superuser.close().await;
        self.postgres.stop().await.expect("stop");
    }
}

async fn is_refused(pool: &PgPool, sql: &'static str) {
    let error = pool.execute(sql).await.expect_err(sql);
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    assert_eq!(code, "42501", "{sql}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_can_do_all_that_the_service_does() {
    let deployment = Deployment::start().await;
    let environment = [
        ("ALLOW_ADMIN_RESET", "on"),
        ("WEBHOOK_ALLOW_PRIVATE", "true"),
        ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "10"),
        ("JANITOR_INTERVAL_MS", "3600000"),
    ];
    let service = Service::start_on(deployment.options("agentpay_app"), &environment).await;
    // Deliveries.
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = json!({ "url": receiver.url, "events": ["*"] });
    assert_eq!(client.post("/api/v1/webhooks", &hook).await.status, 201);
    client.key("k").post("/api/v1/usage", &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    // Expired records, records over a cap, events over their cap and a caller with too many young records.
    store_records(&deployment.superuser, "ip:192.0.2.1", 10, 2 * 86_400_000, 1).await;
    store_records(&deployment.superuser, "ip:192.0.2.2", 30, 7_200_000, 1).await;
    store_records(&deployment.superuser, "ip:192.0.2.3", 30, 0, 1).await;
    let cap = json!({ "eventLogCap": 1 }).to_string();
    assert_eq!(client.send("PATCH", "/api/v1/config", Some(&cap)).await.status, 200);
    service.janitor.run_once().await.expect("a round");
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys WHERE caller = 'ip:192.0.2.1'").await, 0);
    assert_eq!(service.number("SELECT count(*) FROM full_callers").await, 1);
    // The ledger stays.
    assert_eq!(client.send("POST", "/api/v1/admin/reset", None).await.status, 500);
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 1);
    deployment.superuser.execute("GRANT agentpay_reset TO agentpay_app").await.expect("a grant");
    assert_eq!(client.send("POST", "/api/v1/admin/reset", None).await.status, 200);
    readme::run_api(&service).await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_can_change_neither_the_schema_nor_the_ledger_nor_stored_responses() {
    let deployment = Deployment::start().await;
    let app = deployment.pool("agentpay_app");
    for sql in [
        "CREATE TABLE mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "CREATE SCHEMA mine",
        "ALTER TABLE usage_counters ADD COLUMN mine int",
        "DROP TABLE full_callers",
        "TRUNCATE outbox",
        "DELETE FROM settlements",
        "UPDATE settlements SET billed_stroops = 0",
        "DELETE FROM usage_counters",
        "UPDATE usage_counters SET tenant_id = 'public'",
        "DELETE FROM agents",
        "DELETE FROM totals",
        "DELETE FROM tenants",
        "DELETE FROM audit_log",
        "UPDATE audit_log SET actor = 'cli'",
        "UPDATE event_runs SET payloads = ''",
        "UPDATE idempotency_keys SET response = ''",
        "UPDATE api_keys SET tenant_id = 'public'",
        "INSERT INTO runtime_config DEFAULT VALUES",
        "DELETE FROM _sqlx_migrations",
        "SELECT setval('event_positions', 1)",
    ] {
        is_refused(&app, sql).await;
    }
    // A new table can be used before grants.sql is run again, and only by the service.
    deployment.pool("agentpay_owner").execute("CREATE TABLE later (a int)").await.expect("a table");
    app.execute("INSERT INTO later VALUES (1)").await.expect("a row");
    is_refused(&deployment.login("alice", "agentpay_readonly").await, "SELECT * FROM later").await;
    deployment.migrate_and_grant().await;
    is_refused(&app, "INSERT INTO later VALUES (1)").await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dbas_and_auditors_read_no_secrets_and_write_nothing() {
    if needs_one_cell("the roles are those of one server, which the test starts") {
        return;
    }
    let deployment = Deployment::start().await;
    let service = Service::start_on(deployment.options("agentpay_app"), &[]).await;
    service.client().key("k").post("/api/v1/usage", &usage("a", "s", 1)).await;
    let (alice, bob) =
        (deployment.login("alice", "agentpay_readonly").await, deployment.login("bob", "agentpay_auditor").await);
    let hidden = "SELECT format('%s.%s', table_name, column_name) FROM information_schema.columns
        WHERE table_schema = 'public' AND NOT has_column_privilege($1, quote_ident(table_name), column_name, 'SELECT')
        ORDER BY 1";
    let written =
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
        AND (has_table_privilege($1, oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
             OR has_any_column_privilege($1, oid, 'INSERT, UPDATE'))";
    let names = async |sql: &'static str, person: &str| {
        let names = sqlx::query_scalar::<_, String>(sql).bind(person).fetch_all(&deployment.superuser);
        names.await.expect("names")
    };
    assert_eq!(names(hidden, "alice").await, ["api_keys.key_hash", "webhooks.previous_secret", "webhooks.secret"]);
    let hidden_from_auditors = names(hidden, "bob").await;
    for column in ["api_keys.key_hash", "webhooks.secret", "webhooks.url"] {
        assert!(hidden_from_auditors.contains(&column.to_owned()), "{column}");
    }
    for person in ["alice", "bob"] {
        assert_eq!(names(written, person).await, Vec::<String>::new());
    }
    for view in ["events", "billing_overview", "idempotency_overview", "recent_responses"] {
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {view}"));
        let count: i64 = sqlx::query_scalar(count).fetch_one(&alice).await.expect(view);
        assert!(count > 0, "{view}");
    }
    is_refused(&alice, "SELECT key_hash FROM api_keys").await;
    is_refused(&bob, "SELECT * FROM webhook_deliveries").await;
    let verified = run(&["verify"], &[("DATABASE_URL", &url(&deployment.options("bob")))]).await;
    assert_eq!(String::from_utf8_lossy(&verified.stdout), "1 pairs add up\n", "{verified:?}");
    alice.close().await;
    bob.close().await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_grants_the_rights_in_all_cells() {
    let deployment = Deployment::start().await;
    deployment.superuser.execute("CREATE DATABASE eu").await.expect("a database");
    let eu = |role: &str| deployment.options(role).database("eu");
    pool(&deployment.postgres.connect_options("eu")).execute(ROLES).await.expect("roles.sql");
    // Another cell is in a schema of the same database.
    let roles = format!("CREATE SCHEMA us; {}", ROLES.replace("SCHEMA public", "SCHEMA us"));
    pool(&deployment.postgres.connect_options("eu")).execute(AssertSqlSafe(roles)).await.expect("roles.sql");
    let dir = DataDir::new();
    std::fs::create_dir_all(dir.path()).expect("a directory");
    let file = dir.path().join("cells.toml");
    let owner = eu("agentpay_owner");
    let cells = [
        ("home", deployment.options("agentpay_owner"), "public"),
        ("eu", owner.clone(), "public"),
        ("us", owner, "us"),
    ];
    let cells = cells.map(|(id, database, schema)| {
        format!("[[cell]]\nid = \"{id}\"\nschema = \"{schema}\"\nurl = \"{}\"\n", url(&database))
    });
    std::fs::write(&file, cells.concat()).expect("CELLS_FILE");
    let file = [("CELLS_FILE", file.to_str().expect("UTF-8"))];
    for arguments in [&["cells", "add", "eu"][..], &["cells", "add", "us"], &["cells", "migrate", "--grants"]] {
        let done = run(arguments, &file).await;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let application = pool(&eu("agentpay_app"));
    for schema in ["public", "us"] {
        let read = format!("SELECT FROM {schema}.usage_counters");
        application.execute(AssertSqlSafe(read)).await.expect("the rights of the service");
    }
    is_refused(&application, "DELETE FROM settlements").await;
    is_refused(&application, "DELETE FROM us.settlements").await;
    application.close().await;
    deployment.stop().await;
}
