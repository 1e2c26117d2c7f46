//! The migrations: compares those of the program with those of the database, and applies pending ones. While a
//! migration waits for a table, later queries queue behind it. A migration therefore waits only briefly, lets the
//! others continue, and tries again.

use std::time::{Duration, Instant};

use rand::RngExt;
use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tracing::{info, warn};

use super::{MIGRATOR, StoreError, citus, reset, server};

/// How long a migration waits for a lock, and so how long other queries queue behind it.
const LOCK_TIMEOUT: &str = "2s";

/// The pause between two attempts grows from the minimum to the maximum, and up to twice that at random. Other queries
/// have at least as long as they had to wait.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// Held by a process that migrates a distributed schema. The number is arbitrary.
const DISTRIBUTED_LOCK: i64 = 0x6167_656e_7470_617c;

/// The description of a migration that the program before it works with begins with this word.
const EXPANDS: &str = "expand ";

/// The differences between the migrations of the database and those of the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Only in the program.
    pub pending: Vec<String>,
    /// Only in the database.
    pub unknown: Vec<i64>,
    /// Only in the database, newer than the program and compatible with it.
    pub expansions: Vec<i64>,
    /// In both, with different text.
    pub changed: Vec<String>,
    /// Began without a transaction, and did not end.
    pub unfinished: Vec<i64>,
}

/// The tables that the service needs and the database does not have.
pub async fn missing_tables(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let needed: Vec<&str> = reset::tables()
        .chain(["tenants", "runtime_config", "audit_log", "verification", "cells", "cell_identity", "_sqlx_migrations"])
        .collect();
    let missing = sqlx::query_scalar!(
        r#"-- migrations::missing_tables
        SELECT needed.name AS "name!" FROM unnest($1::text[]) AS needed (name) WHERE to_regclass(needed.name) IS NULL"#,
        needed as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(missing)
}

/// Compares without writing.
pub async fn compare(connection: &mut PgConnection) -> Result<Difference, StoreError> {
    compare_with(&MIGRATOR, connection).await
}

async fn compare_with(migrator: &Migrator, connection: &mut PgConnection) -> Result<Difference, StoreError> {
    let exists = sqlx::query_scalar!(
        r#"-- migrations::compare_with
        SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut difference = Difference { pending: ups(migrator).map(name).collect(), ..Difference::default() };
    if !exists {
        return Ok(difference);
    }
    let applied = sqlx::query!(
        "-- migrations::compare_with\nSELECT version, description, checksum, success FROM _sqlx_migrations ORDER BY version"
    )
    .fetch_all(connection)
    .await?;
    let newest = ups(migrator).map(|migration| migration.version).max();
    for row in applied {
        match ups(migrator).find(|migration| migration.version == row.version) {
            None if Some(row.version) > newest && row.description.starts_with(EXPANDS) => {
                difference.expansions.push(row.version);
            }
            None => difference.unknown.push(row.version),
            Some(migration) => {
                difference.pending.retain(|pending| *pending != name(migration));
                if *migration.checksum != *row.checksum {
                    difference.changed.push(name(migration));
                }
            }
        }
        if !row.success {
            difference.unfinished.push(row.version);
        }
    }
    Ok(difference)
}

/// Applies all pending migrations, however long their tables stay locked. Only one process migrates at a time; the
/// others wait and find nothing left. To stop waiting, drop the future.
pub async fn apply(connection: &mut PgConnection) -> Result<(), MigrateError> {
    apply_from(&MIGRATOR, connection).await
}

/// Like [`apply`], with other migrations, for tests.
pub async fn apply_from(migrator: &Migrator, connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut pause = PAUSE_MIN;
    while let Some(migration) = next(migrator, connection).await? {
        // A migration without a transaction blocks nobody while it waits, and would leave partial work if it gave up.
        let lock_timeout = if migration.no_tx { "0" } else { LOCK_TIMEOUT };
        server::bound_locks(connection, lock_timeout).await.map_err(as_migrate_error)?;
        // `run_to` calls this, but its future is not `Send`.
        let applied = if citus::dialect(connection).await.map_err(as_migrate_error)?.is_citus() {
            apply_to_distributed(migration, connection).await
        } else {
            migrator.run_direct(Some(migration.version), &mut *connection, false).await
        };
        let Err(error) = applied else {
            info!(migration = name(migration), "migrated");
            pause = PAUSE_MIN;
            continue;
        };
        // The lock between migrating processes belongs to the connection, and outlives the error.
        unlock(connection).await.map_err(as_migrate_error)?;
        if !is_blocked(&error) {
            return Err(error);
        }
        let waits_for = blockers(connection).await.map_err(as_migrate_error)?;
        let pause_ms = pause.mul_f64(rand::rng().random_range(1.0..2.0)).as_millis() as u64;
        warn!(migration = name(migration), waitsFor = waits_for, pauseMs = pause_ms, "a migration waits for a lock");
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}

/// Applies a migration to a schema that Citus distributes, command by command: sqlx sends all in one message, which Citus
/// runs only if none of them changes a distributed table.
async fn apply_to_distributed(migration: &Migration, connection: &mut PgConnection) -> Result<(), MigrateError> {
    if migration.no_tx {
        return apply_without_transaction(migration, connection).await;
    }
    let mut transaction = connection.begin().await?;
    // Only one process migrates at a time, on the coordinator.
    sqlx::query!("-- migrations::apply_to_distributed\nSELECT pg_advisory_xact_lock($1)", DISTRIBUTED_LOCK)
        .execute(&mut *transaction)
        .await?;
    let began = Instant::now();
    if note_begun(migration, &mut transaction).await? {
        run_commands(migration, &mut transaction).await?;
        note_success(migration, began, &mut transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// The same for a migration that cannot run in a transaction. It stays noted as unfinished if it fails, as sqlx does it.
/// Another process does not wait, because an index that is created concurrently waits for all transactions.
async fn apply_without_transaction(migration: &Migration, connection: &mut PgConnection) -> Result<(), MigrateError> {
    let began = Instant::now();
    if !note_begun(migration, connection).await? {
        return Err(MigrateError::Dirty(migration.version));
    }
    run_commands(migration, connection).await?;
    note_success(migration, began, connection).await
}

async fn run_commands(migration: &Migration, connection: &mut PgConnection) -> Result<(), MigrateError> {
    let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
    for command in citus::commands(migration.sql.as_str()) {
        sqlx::raw_sql(AssertSqlSafe(command)).execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

/// Notes that a migration has begun. False if that is noted already.
async fn note_begun(migration: &Migration, connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let noted = sqlx::query!(
        "-- migrations::note_begun
        INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES ($1, $2, false, $3, -1) ON CONFLICT (version) DO NOTHING",
        migration.version,
        &*migration.description,
        &*migration.checksum,
    );
    Ok(noted.execute(connection).await?.rows_affected() == 1)
}

async fn note_success(
    migration: &Migration,
    began: Instant,
    connection: &mut PgConnection,
) -> Result<(), MigrateError> {
    sqlx::query!(
        "-- migrations::note_success
        UPDATE _sqlx_migrations SET success = true, execution_time = $2 WHERE version = $1",
        migration.version,
        began.elapsed().as_nanos() as i64,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn ups(migrator: &Migrator) -> impl Iterator<Item = &Migration> {
    migrator.iter().filter(|migration| migration.migration_type.is_up_migration())
}

fn name(migration: &Migration) -> String {
    format!("{:04}_{}", migration.version, migration.description.replace(' ', "_"))
}

/// The first pending migration.
async fn next<'a>(
    migrator: &'a Migrator,
    connection: &mut PgConnection,
) -> Result<Option<&'a Migration>, MigrateError> {
    let pending = compare_with(migrator, connection).await.map_err(as_migrate_error)?.pending;
    Ok(ups(migrator).find(|migration| pending.first() == Some(&name(migration))))
}

/// Whether a later attempt may succeed: a lock was not available, or there was a deadlock.
fn is_blocked(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else { return false };
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}

async fn unlock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("-- migrations::unlock\nSELECT pg_advisory_unlock_all()").execute(connection).await?;
    Ok(())
}

/// The processes that have locked a table for longer than a migration waits, for the log.
async fn blockers(connection: &mut PgConnection) -> Result<String, StoreError> {
    let blockers = sqlx::query_scalar!(
        r#"-- migrations::blockers
        SELECT format('process %s, which has had %s for %s s', locks.pid, string_agg(class.relname, ', ' ORDER BY class.relname),
                      floor(extract(epoch FROM now() - activity.xact_start))) AS "blocker!"
        FROM pg_locks AS locks
        JOIN pg_class AS class ON class.oid = locks.relation AND class.relkind = 'r'
        JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace AND namespace.nspname = current_schema()
        JOIN pg_stat_activity AS activity ON activity.pid = locks.pid AND activity.datname = current_database()
        WHERE locks.granted AND locks.pid <> pg_backend_pid() AND activity.xact_start < now() - interval '2 seconds'
        GROUP BY locks.pid, activity.xact_start
        ORDER BY activity.xact_start LIMIT 3"#
    )
    .fetch_all(connection)
    .await?;
    Ok(if blockers.is_empty() {
        "another process that migrates, or that has let go".to_owned()
    } else {
        blockers.join("; ")
    })
}

fn as_migrate_error(error: StoreError) -> MigrateError {
    match error {
        StoreError::Database(error) => MigrateError::Execute(error),
        other => MigrateError::Source(Box::new(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::MIGRATOR;

    /// The checksum of a migration includes its line ends, so they must not be converted.
    #[test]
    fn migrations_have_the_line_ends_that_their_checksums_were_made_of() {
        for migration in MIGRATOR.iter() {
            assert!(!migration.sql.as_str().contains('\r'), "{} has a carriage return", migration.version);
        }
    }
}
