//! Questions to the PostgreSQL server itself, and the locks and transactions of the house.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Postgres, Transaction};
use time::OffsetDateTime;

use crate::clock::Clock;

use super::StoreError;

/// Oldest PostgreSQL the service works with.
pub const VERSION_MIN: i32 = 14;

/// Only the janitor that holds this advisory lock prunes. The number is arbitrary, and the product's own.
const JANITOR_LOCK: i64 = 0x6167_656e_7470_6179;

/// Every commit holds this advisory lock together with all others; a reset of everything holds it alone. So a reset needs
/// no order of locks among the tables, and no commit can be half before and half after it.
pub(super) const RESET_LOCK: i64 = JANITOR_LOCK + 1;

/// What a start-up has to know of the server.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    pub major_version: i32,
    pub synchronous_commit: String,
}

pub async fn facts(connection: &mut PgConnection) -> Result<ServerFacts, StoreError> {
    let row = sqlx::query!(
        r#"-- server::facts
        SELECT current_setting('server_version_num')::int / 10000 AS "major_version!",
               current_setting('synchronous_commit') AS "synchronous_commit!""#,
    )
    .fetch_one(connection)
    .await?;
    Ok(ServerFacts { major_version: row.major_version, synchronous_commit: row.synchronous_commit })
}

/// How many connections the server allows, those reserved for superusers included.
pub async fn connections_max(connection: &mut PgConnection) -> sqlx::Result<u32> {
    let row = sqlx::query_scalar!(
        r#"-- server::connections_max
        SELECT current_setting('max_connections')::int AS "connections_max!""#
    );
    Ok(row.fetch_one(connection).await?.cast_unsigned())
}

/// An error unless the connection leads to a server that takes writes: after a failover an open connection may stay with
/// the former primary, which goes on answering reads from what it knows.
pub async fn check_writer(connection: &mut PgConnection) -> Result<(), StoreError> {
    let is_writer = sqlx::query_scalar!(
        r#"-- server::check_writer
        SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS "is_writer!""#,
    )
    .fetch_one(connection)
    .await?;
    if is_writer { Ok(()) } else { Err(StoreError::ReadOnly) }
}

/// A connection for everything outside the lanes, to a server that takes writes. What it bounds on the server's side
/// holds when this side has gone without a word, or keeps a transaction open.
pub async fn connect(options: &PgConnectOptions, statement_timeout: Duration) -> Result<PgConnection, StoreError> {
    let mut connection = options.connect().await?;
    // Bounds the wait for a locked table, and turns off JIT compilation, which at ten million rows takes longer than a page.
    let set =
        format!("SET lock_timeout = '2s'; SET jit = off; SET statement_timeout = {}", statement_timeout.as_millis());
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await?;
    bound_silence(&mut connection).await?;
    check_writer(&mut connection).await?;
    Ok(connection)
}

/// Has the server end a session whose client went without a word, with its transaction and its locks: 15 s after its last
/// statement, within half a minute where nothing answers for the client's machine, and within ten seconds during a
/// statement, where the platform can tell (PostgreSQL 14 on Linux).
pub async fn bound_silence(connection: &mut PgConnection) -> Result<(), StoreError> {
    let bounds = "SET idle_in_transaction_session_timeout = '15s'; SET tcp_keepalives_idle = 10; \
                  SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 30000";
    sqlx::raw_sql(bounds).execute(&mut *connection).await?;
    match sqlx::raw_sql("SET client_connection_check_interval = '10s'").execute(connection).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Compares the clock with the database's, and sets it by that.
pub async fn measure_clock(connection: &mut PgConnection, clock: &Clock) -> Result<(), StoreError> {
    let sent = Instant::now();
    let shown = sqlx::query_scalar!(
        r#"-- server::measure_clock
        SELECT clock_timestamp() AS "now!""#
    );
    let shown = shown.fetch_one(connection).await?;
    clock.take_over(shown, sent, Instant::now());
    Ok(())
}

/// An error while this machine's clock and the database's differ by so much that one of them must be wrong. What deletes
/// for good, or claims for a time, asks first.
pub fn check_clock(clock: &Clock) -> Result<(), StoreError> {
    match clock.offset() {
        Some(offset) if offset.is_apart() => Err(StoreError::ClocksApart(offset.as_ms() / 1000)),
        _ => Ok(()),
    }
}

pub async fn ping(connection: &mut PgConnection) -> Result<(), StoreError> {
    Ok(connection.ping().await?)
}

/// Bounds for the rest of the connection how long a statement waits for a lock. As PostgreSQL writes times.
pub async fn bound_locks(connection: &mut PgConnection, lock_timeout: &str) -> Result<(), StoreError> {
    let set = AssertSqlSafe(format!("SET lock_timeout = '{lock_timeout}'"));
    sqlx::raw_sql(set).execute(connection).await?;
    Ok(())
}

/// The server process behind a connection. A process that gets the same number later is another one.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pid: i32,
    started_at: OffsetDateTime,
}

/// Bounds what a lane's connection may wait for: locks, also those of a whole table, which come before any bound that a
/// statement sets itself; statements; and a transaction whose client is gone without a word, which keeps rows locked.
/// And fixes how its statements are planned: once, to find each row of a short list by an index, whatever the tables held
/// when it was planned. `lock_timeout` is as PostgreSQL writes times.
pub async fn set_up_for_commits(
    connection: &mut PgConnection,
    lock_timeout: &str,
    statement_limit: Duration,
) -> Result<Backend, StoreError> {
    let statement_timeout_ms = statement_limit.as_millis();
    bound_locks(connection, lock_timeout).await?;
    let set = AssertSqlSafe(format!(
        "SET statement_timeout = '{statement_timeout_ms}ms'; SET idle_in_transaction_session_timeout = '10s'; \
         SET plan_cache_mode = force_generic_plan; SET enable_hashjoin = off; SET enable_mergejoin = off; \
         SET enable_seqscan = off; SET jit = off"
    ));
    sqlx::raw_sql(set).execute(&mut *connection).await?;
    let backend = sqlx::query_as!(
        Backend,
        r#"-- server::set_up_for_commits
        SELECT pid AS "pid!", backend_start AS "started_at!" FROM pg_stat_activity WHERE pid = pg_backend_pid()"#,
    )
    .fetch_one(connection)
    .await?;
    Ok(backend)
}

/// How a server process is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Its statement ends with an error, and it goes on.
    Cancel,
    /// It ends, even before a statement that it has yet to read.
    Terminate,
}

/// Interrupts the server process of another connection. A commit that waits for its synchronous standby is left alone:
/// interrupted, it would be a success that the standby does not have.
pub async fn interrupt(
    connection: &mut PgConnection,
    backend: Backend,
    interrupt: Interrupt,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- server::interrupt
        SELECT CASE WHEN $3 THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END FROM pg_stat_activity
        WHERE pid = $1 AND backend_start = $2 AND wait_event IS DISTINCT FROM 'SyncRep'",
        backend.pid,
        backend.started_at,
        interrupt == Interrupt::Terminate,
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// A transaction of a lane that begins when it has to.
pub struct CommitTransaction<'c> {
    connection: &'c mut PgConnection,
    is_open: bool,
}

impl<'c> CommitTransaction<'c> {
    pub fn on(connection: &'c mut PgConnection) -> Self {
        Self { connection, is_open: false }
    }

    pub fn connection(&mut self) -> &mut PgConnection {
        self.connection
    }

    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// In one round trip. `lock_timeout` is how long the transaction waits for a row that another one keeps locked, before it
    /// fails as [`LockTimeout`](super::FaultKind::LockTimeout). With `exclusive` it waits until all commits under way have
    /// ended, and no other begins until it ends; each of its statements may take that long.
    pub async fn begin(&mut self, lock_timeout: &str, exclusive: Option<Duration>) -> Result<(), StoreError> {
        let begin = match exclusive {
            None => format!(
                "BEGIN; SELECT set_config('lock_timeout', '{lock_timeout}', true), \
                               pg_advisory_xact_lock_shared({RESET_LOCK})"
            ),
            Some(statement_limit) => format!(
                "BEGIN; SELECT set_config('lock_timeout', '{lock_timeout}', true), \
                               set_config('statement_timeout', '{}ms', true), pg_advisory_xact_lock({RESET_LOCK})",
                statement_limit.as_millis().max(1)
            ),
        };
        // BEGIN has its effect even where the lock is not obtained.
        self.is_open = true;
        self.connection.execute(AssertSqlSafe(begin)).await?;
        Ok(())
    }

    pub async fn commit(&mut self) -> Result<(), StoreError> {
        self.connection.execute("COMMIT").await?;
        self.is_open = false;
        Ok(())
    }

    /// At once, because an idle lane must not keep rows locked. A connection that cannot even do that is broken, which its
    /// next use finds out. Does nothing after a commit.
    pub async fn roll_back(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = self.connection.execute("ROLLBACK").await;
        }
    }
}

/// Begins a transaction of the dispatcher. Its statements are planned for the tables as they are now, and work by index
/// probes whatever the statistics say: they are few rows out of tables that empty and fill all the time.
pub async fn begin_dispatch(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    let begin = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; \
                 SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";
    Ok(connection.begin_with(begin).await?)
}

/// Begins a transaction that walks a table in the order of an index, and stops where it has read enough. Left to itself the
/// planner prefers to read and sort all there is of a small or unknown table.
pub async fn begin_walk(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    Ok(connection.begin_with("BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off").await?)
}

/// Begins a transaction that sees the database as of one moment.
pub async fn begin_snapshot(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    Ok(connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
}

/// The same for a connection that is held for many parts of work: every connection that is not given back is closed, so
/// the snapshot ends with [`end_snapshot`] or with its connection.
pub async fn hold_snapshot(connection: &mut PgConnection) -> Result<(), StoreError> {
    // Between two parts it waits for a client, which has limits of its own.
    let begin =
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = '5min'";
    connection.execute(begin).await?;
    Ok(())
}

pub async fn end_snapshot(connection: &mut PgConnection) -> Result<(), StoreError> {
    connection.execute("ROLLBACK").await?;
    Ok(())
}

/// Whether this transaction is now the only janitor, until it ends. It never waits.
pub async fn try_janitor_lock(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let locked = sqlx::query_scalar!(
        r#"-- server::try_janitor_lock
        SELECT pg_try_advisory_xact_lock($1) AS "locked!""#,
        JANITOR_LOCK,
    )
    .fetch_one(connection)
    .await?;
    Ok(locked)
}

/// Waits until no janitor is at work, and keeps them out until this transaction ends.
pub async fn lock_out_janitors(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("-- server::lock_out_janitors\nSELECT pg_advisory_xact_lock($1)", JANITOR_LOCK)
        .execute(connection)
        .await?;
    Ok(())
}
