//! Statements about the PostgreSQL server and the session: checks, settings, advisory locks, transactions.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Postgres, Transaction};
use time::OffsetDateTime;

use crate::clock::Clock;
use crate::domain::cell::Dialect;
use crate::domain::timestamp::Timestamp;

use super::StoreError;
use super::remembered::Remembered;

/// The oldest supported version of PostgreSQL.
pub const VERSION_MIN: i32 = 14;

/// Only the janitor that holds this advisory lock works. The number is arbitrary.
const JANITOR_LOCK: i64 = 0x6167_656e_7470_6179;

/// Every commit shares this advisory lock, and a reset holds it exclusively. Each commit is therefore entirely before
/// or entirely after a reset, and a reset needs no order of locks among the tables.
pub(super) const RESET_LOCK: i64 = JANITOR_LOCK + 1;

/// Keeps Citus from moving the schema to another node until the transaction ends, and changes nothing. Only a modification
/// does so. Without it, locked rows could be left behind, and would be free on the new node.
const HOLD_SCHEMA: &str = "UPDATE cell_identity SET cell_id = cell_id WHERE NOT only_row";

/// Facts about the server that a start checks.
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

/// The server's `max_connections`, including connections reserved for superusers.
pub async fn connections_max(connection: &mut PgConnection) -> sqlx::Result<u32> {
    let row = sqlx::query_scalar!(
        r#"-- server::connections_max
        SELECT current_setting('max_connections')::int AS "connections_max!""#
    );
    Ok(row.fetch_one(connection).await?.cast_unsigned())
}

/// The size of the database on disk. The result is reused for a minute: PostgreSQL reads the size of every file.
#[derive(Debug)]
pub struct DatabaseSize(Remembered<i64>);

impl Default for DatabaseSize {
    fn default() -> Self {
        Self(Remembered::for_ms(60_000))
    }
}

impl DatabaseSize {
    pub async fn bytes(&self, connection: &mut PgConnection, now: Timestamp) -> Result<i64, StoreError> {
        if let Some(bytes) = self.0.at(now) {
            return Ok(bytes);
        }
        let bytes = sqlx::query_scalar!(
            r#"-- server::bytes
            SELECT pg_database_size(current_database()) AS "bytes!""#
        );
        Ok(self.0.put(bytes.fetch_one(connection).await?, now))
    }
}

/// Fails unless the server is writable. After a failover an open connection may still lead to the former primary, which
/// continues to answer reads with old data.
pub async fn check_writer(connection: &mut PgConnection) -> Result<(), StoreError> {
    let is_writer = sqlx::query_scalar!(
        r#"-- server::check_writer
        SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS "is_writer!""#,
    )
    .fetch_one(connection)
    .await?;
    if is_writer { Ok(()) } else { Err(StoreError::ReadOnly) }
}

/// Opens a connection for everything outside the lanes, to a writable server. The limits that it sets apply on the
/// server, even if this process does not respond.
pub async fn connect(options: &PgConnectOptions, statement_timeout: Duration) -> Result<PgConnection, StoreError> {
    let mut connection = options.connect().await?;
    // Limits the wait for a locked table. JIT compilation is off, because at ten million rows it takes longer than
    // reading a page.
    let set =
        format!("SET lock_timeout = '2s'; SET jit = off; SET statement_timeout = {}", statement_timeout.as_millis());
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await?;
    bound_silence(&mut connection).await?;
    check_writer(&mut connection).await?;
    Ok(connection)
}

/// Opens a connection for the move of a tenant, whose statements may take long and whose transactions may be idle while it
/// reads another server. `lock_wait` limits how long it waits for locks.
pub async fn connect_for_move(options: &PgConnectOptions, lock_wait: Duration) -> Result<PgConnection, StoreError> {
    let mut connection = connect(options, Duration::ZERO).await?;
    let set = format!("SET idle_in_transaction_session_timeout = 0; SET lock_timeout = {}", lock_wait.as_millis());
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await?;
    Ok(connection)
}

/// Makes the server end a session whose client has disappeared, and release its locks: after 15 s idle in a
/// transaction, within half a minute if the client's machine does not respond, and within ten seconds during a
/// statement where the platform supports it (PostgreSQL 14 on Linux).
pub async fn bound_silence(connection: &mut PgConnection) -> Result<(), StoreError> {
    let bounds = "SET idle_in_transaction_session_timeout = '15s'; SET tcp_keepalives_idle = 10; \
                  SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 30000";
    sqlx::raw_sql(bounds).execute(&mut *connection).await?;
    match sqlx::raw_sql("SET client_connection_check_interval = '10s'").execute(connection).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets statements of this connection run as long as they need.
pub async fn unbound_statements(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("SET statement_timeout = 0").execute(connection).await?;
    Ok(())
}

/// Measures the database's clock, and sets `clock`.
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

/// Fails while the clocks of this machine and the database differ so much that one must be wrong. Called before
/// anything is deleted or leased.
pub fn check_clock(clock: &Clock) -> Result<(), StoreError> {
    match clock.offset() {
        Some(offset) if offset.is_apart() => Err(StoreError::ClocksApart(offset.as_ms() / 1000)),
        _ => Ok(()),
    }
}

pub async fn ping(connection: &mut PgConnection) -> Result<(), StoreError> {
    Ok(connection.ping().await?)
}

/// Limits how long statements of this connection wait for locks, in PostgreSQL's notation of times.
pub async fn bound_locks(connection: &mut PgConnection, lock_timeout: &str) -> Result<(), StoreError> {
    let set = AssertSqlSafe(format!("SET lock_timeout = '{lock_timeout}'"));
    sqlx::raw_sql(set).execute(connection).await?;
    Ok(())
}

/// The server process of a connection. A later process with the same number is another one.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pid: i32,
    started_at: OffsetDateTime,
}

/// Configures the connection of a lane. Limits how long it waits for locks, how long statements run, and how long a
/// transaction stays idle, which would keep rows locked. Makes the server plan each statement once, for index scans
/// only, whatever the tables contain at that time. `lock_timeout` is in PostgreSQL's notation of times.
pub async fn set_up_for_commits(
    connection: &mut PgConnection,
    dialect: Dialect,
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
    if dialect.is_citus() {
        // Citus has no general plan for INSERT … SELECT.
        sqlx::raw_sql("SET plan_cache_mode = auto").execute(&mut *connection).await?;
    }
    let backend = sqlx::query_as!(
        Backend,
        r#"-- server::set_up_for_commits
        SELECT pid AS "pid!", backend_start AS "started_at!" FROM pg_stat_activity WHERE pid = pg_backend_pid()"#,
    )
    .fetch_one(connection)
    .await?;
    Ok(backend)
}

/// How to interrupt a server process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Cancels its statement. The connection stays open.
    Cancel,
    /// Ends the process, even before a statement that it has not read yet.
    Terminate,
}

/// Interrupts the server process of another connection. A commit that waits for a synchronous standby is not
/// interrupted, because it would then succeed without being on the standby.
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

/// A transaction of a lane that begins only when it must.
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

    /// Begins the transaction in one round trip. `lock_timeout` is how long it waits for a lock before it fails with
    /// [`LockTimeout`](super::FaultKind::LockTimeout). With `exclusive` it waits until all running commits have ended,
    /// and no other commit begins until it ends; its statements may take that long.
    ///
    /// A reset is refused where there are several cells, so Citus has none, and its commits need no lock against it.
    pub async fn begin(
        &mut self,
        dialect: Dialect,
        lock_timeout: &str,
        exclusive: Option<Duration>,
    ) -> Result<(), StoreError> {
        let begin = match exclusive {
            _ if dialect.is_citus() => format!("BEGIN; SET LOCAL lock_timeout = '{lock_timeout}'; {HOLD_SCHEMA}"),
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
        // BEGIN takes effect even if the lock is not obtained.
        self.is_open = true;
        self.connection.execute(AssertSqlSafe(begin)).await?;
        Ok(())
    }

    pub async fn commit(&mut self) -> Result<(), StoreError> {
        self.connection.execute("COMMIT").await?;
        self.is_open = false;
        Ok(())
    }

    /// Rolls back at once, because an idle lane must not keep rows locked. If that fails, the connection is broken,
    /// which its next use detects. Does nothing after a commit.
    pub async fn roll_back(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = self.connection.execute("ROLLBACK").await;
        }
    }
}

/// Begins a transaction of the dispatcher. Its statements are planned for each execution, and use index scans whatever
/// the statistics say, because they read few rows of tables that constantly fill and empty.
pub async fn begin_dispatch(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    let begin = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; \
                 SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";
    Ok(connection.begin_with(begin).await?)
}

/// Begins a transaction that reads a table in the order of an index and stops early. For small or unknown tables the
/// planner would otherwise read and sort everything.
pub async fn begin_walk(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    Ok(connection.begin_with("BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off").await?)
}

/// Begins a transaction with one snapshot. Statements are planned for their parameters, such as a range of rows.
pub async fn begin_snapshot(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan";
    Ok(connection.begin_with(begin).await?)
}

/// Begins a snapshot for one statement that reads many rows. The statement uses one core at most and is cancelled after
/// `limit`, because vacuum cannot remove rows that an old snapshot may see. It is planned for its parameters, so that a
/// range of rows is read by an index.
pub async fn begin_long_read(
    connection: &mut PgConnection,
    limit: Duration,
) -> Result<Transaction<'_, Postgres>, StoreError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}; \
         SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL plan_cache_mode = force_custom_plan",
        limit.as_millis()
    );
    Ok(connection.begin_with(AssertSqlSafe(begin)).await?)
}

/// Begins a snapshot on a connection that is held for several parts of work. It ends with [`end_snapshot`] or when the
/// connection is closed.
pub async fn hold_snapshot(connection: &mut PgConnection) -> Result<(), StoreError> {
    // Between two parts it waits for the client, which has its own time limit.
    let begin =
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = '5min'";
    connection.execute(begin).await?;
    Ok(())
}

pub async fn end_snapshot(connection: &mut PgConnection) -> Result<(), StoreError> {
    connection.execute("ROLLBACK").await?;
    Ok(())
}

/// Tries to become the only janitor until the transaction ends. Does not wait.
pub async fn try_janitor_lock(connection: &mut PgConnection, dialect: Dialect) -> Result<bool, StoreError> {
    if dialect.is_citus() {
        sqlx::raw_sql(HOLD_SCHEMA).execute(&mut *connection).await?;
        // An advisory lock would be on the node that the connection leads to.
        let locked =
            sqlx::query!("-- server::try_janitor_lock\nSELECT cell_id FROM cell_identity FOR UPDATE SKIP LOCKED")
                .fetch_optional(connection)
                .await?;
        return Ok(locked.is_some());
    }
    let locked = sqlx::query_scalar!(
        r#"-- server::try_janitor_lock
        SELECT pg_try_advisory_xact_lock($1) AS "locked!""#,
        JANITOR_LOCK,
    )
    .fetch_one(connection)
    .await?;
    Ok(locked)
}

/// Waits until no janitor works, and excludes them until this transaction ends.
pub async fn lock_out_janitors(connection: &mut PgConnection, dialect: Dialect) -> Result<(), StoreError> {
    if dialect.is_citus() {
        sqlx::query!("-- server::lock_out_janitors\nSELECT cell_id FROM cell_identity FOR UPDATE")
            .fetch_optional(connection)
            .await?;
        return Ok(());
    }
    sqlx::query!("-- server::lock_out_janitors\nSELECT pg_advisory_xact_lock($1)", JANITOR_LOCK)
        .execute(connection)
        .await?;
    Ok(())
}
