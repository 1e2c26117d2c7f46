//! An upgrade without downtime: replicas of an older program serve load while the newer one migrates, and are then replaced
//! one after the other. `UPGRADE_FROM` is the older program (`.ci/check-upgrade` builds one); without it, this program stands
//! for both. Then the schema is expanded further, as the next release may do.

use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Executor};

use super::{Drill, ENVIRONMENT, addresses};
use crate::support::{Process, empty_database, pool, run, run_program, url};

/// Adds a column to each table, as expanding migrations of the next release may do.
async fn expand(database: &PgConnectOptions) {
    let pool = pool(database);
    let tables =
        "SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&pool).await.expect("tables");
    for table in tables {
        let add = format!("ALTER TABLE {table} ADD COLUMN expansion text DEFAULT 'x'");
        pool.execute(AssertSqlSafe(add)).await.expect("a column");
    }
    let applied = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                   VALUES (9999, 'expand all tables', true, '', 0)";
    pool.execute(applied).await.expect("a migration");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_upgraded_one_by_one_under_load() {
    let newer = PathBuf::from(env!("CARGO_BIN_EXE_agentpay-billing"));
    let older = std::env::var_os("UPGRADE_FROM").map_or(newer.clone(), PathBuf::from);
    let database = empty_database().await;
    let database_url = url(&database);
    let migrated = run_program(&older, &["migrate"], &[("DATABASE_URL", &database_url)]).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let environment = [&[("DATABASE_URL", database_url.as_str())], &ENVIRONMENT[..]].concat();
    let start = |program: &Path, port| Process::start_program(program, &environment, port);
    let restart = async |replica: &mut Process| {
        let port = replica.address.port();
        replica.signal("-TERM");
        assert!(replica.exit().await.success());
        *replica = start(&newer, port);
    };
    let mut replicas = [start(&older, 0), start(&older, 0)];
    let drill = Drill::prepare("upgrade", &replicas).await;
    drill.report("older program", older.display());

    let load = drill.load(0, addresses(&replicas));
    load.reach(drill.operations / 5, || {}).await;
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database_url)]).await;
    let said = String::from_utf8_lossy(&migrated.stderr);
    assert!(migrated.status.success(), "the newer program cannot migrate the schema of the older one: {said}");
    drill.report("migrations of the newer program", "applied under load");
    for (number, part) in [(0, 2), (1, 3)] {
        load.reach(part * drill.operations / 5, || {}).await;
        restart(&mut replicas[number]).await;
    }
    drill.report("replicas", "replaced one by one under load");
    load.reach(4 * drill.operations / 5, || {}).await;
    expand(&database).await;
    drill.report("a column more in each table, by a migration of the next release", "added under load");
    restart(&mut replicas[0]).await;
    drill.report("a replica", "restarted on the schema of the next release");
    let told = load.end().await;
    drill.report(
        "answers of replicas that stopped",
        format!("{} refused, {} unknown, {} lost", told.refused, told.unknown, told.lost),
    );
    drill.retry_all_and_check(&told, &database, addresses(&replicas)).await;
}
