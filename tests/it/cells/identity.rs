//! A database is changed only after it is known to be the cell that CELLS_FILE names.

use agentpay_billing::store::MIGRATOR;
use serde_json::{Value, json};
use sqlx::Executor;
use sqlx::postgres::PgConnectOptions;

use crate::support::{Cells, Service, empty_database, new_database, pool, run, wait_until};

/// Undone, so that it is pending.
const PENDING: i64 = 16;
const FOUR: [(&str, u32); 4] = [("home", 1), ("eu", 1), ("us", 1), ("asia", 1)];

async fn undo_a_migration(database: &PgConnectOptions) {
    let is_down = |migration: &&sqlx::migrate::Migration| {
        migration.version == PENDING && !migration.migration_type.is_up_migration()
    };
    let down = MIGRATOR.iter().find(is_down).expect("a migration");
    let pool = pool(database);
    pool.execute(sqlx::raw_sql(down.sql.clone())).await.expect("an older schema");
    pool.execute("DELETE FROM _sqlx_migrations WHERE version = 16").await.expect("a pending migration");
}

/// The number of applied migrations.
async fn applied(database: &PgConnectOptions) -> i64 {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&pool(database))
        .await
        .expect("a database");
    if !exists {
        return 0;
    }
    let count = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations");
    count.fetch_one(&pool(database)).await.expect("a count")
}

#[tokio::test]
async fn a_database_that_is_not_the_cell_is_not_migrated() {
    let mut cells = Cells::start(&FOUR[..3]).await;
    let of_us = cells.databases[2].clone();
    let (empty, without_identity) = (empty_database().await, new_database().await);
    let all = applied(&of_us).await;
    for database in [&of_us, &without_identity] {
        undo_a_migration(database).await;
    }
    cells.databases = vec![cells.home(), of_us.clone(), empty.clone(), without_identity.clone()];
    cells.write_file(&FOUR);
    let path = cells.file().to_owned();
    let file = [("CELLS_FILE", path.as_str())];
    let are_unchanged = async || {
        [applied(&of_us).await, applied(&empty).await, applied(&without_identity).await] == [all - 1, 0, all - 1]
    };

    let service = Service::start_on(cells.home(), &file).await;
    let client = service.client();
    let no_cell = |id: &str| {
        format!("the database of the cell {id} in CELLS_FILE is no cell: run `agentpay-billing cells add {id}`")
    };
    let reasons = json!([
        { "cell": "eu", "reason": "the database of the cell eu in CELLS_FILE is that of the cell us" },
        { "cell": "us", "reason": no_cell("us") },
        { "cell": "asia", "reason": no_cell("asia") },
    ]);
    let unavailable = async || -> Value { client.get("/api/v1/health/ready").await.json()["unavailableCells"].clone() };
    wait_until(async || unavailable().await == reasons).await;
    let output = run(&["cells", "migrate"], &file).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(error, "the database of the cell eu in CELLS_FILE is that of the cell us\n");
    assert!(are_unchanged().await);
    drop(service);

    // The same holds for the home cell, and for the commands that migrate it.
    for (database, problem) in [
        (&of_us, "the database of the cell home in CELLS_FILE is that of the cell us".to_owned()),
        (&empty, no_cell("home")),
        (&without_identity, no_cell("home")),
    ] {
        cells.databases = vec![database.clone(), new_database().await];
        cells.write_file(&FOUR[..2]);
        let port = [file[0], ("PORT", "1")];
        for arguments in [&["serve"][..], &["migrate"], &["keys", "create", "--label", "l"], &["cells", "migrate"]] {
            let output = run(arguments, &port).await;
            let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
            assert!(output.status.code() == Some(1) && text.contains(&problem), "{arguments:?}: {text}");
        }
    }
    assert!(are_unchanged().await);

    // A single cell is any database that is not another cell.
    for (database, code) in [(&of_us, 1), (&empty, 0), (&without_identity, 0)] {
        cells.databases = vec![database.clone()];
        cells.write_file(&FOUR[..1]);
        let output = run(&["migrate"], &file).await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    assert_eq!([applied(&of_us).await, applied(&empty).await, applied(&without_identity).await], [all - 1, all, all]);
}

#[tokio::test]
async fn empty_databases_become_cells() {
    let mut cells = Cells::start(&FOUR[..1]).await;
    cells.databases = vec![empty_database().await, empty_database().await];
    cells.write_file(&FOUR[..2]);
    let file = [("CELLS_FILE", cells.file())];
    let output = run(&["cells", "add", "eu"], &file).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "eu is the cell number 1\n", "{output:?}");
    let output = run(&["cells", "verify"], &file).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 cells and 1 tenants add up\n", "{output:?}");
}
