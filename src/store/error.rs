//! What can go wrong in the database, sorted by what to do about it.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// A fault of the store. It is logged, and never shown to a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("the database did not answer in time")]
    TimedOut,
    #[error("the commit was kept waiting until the deadline")]
    Blocked,
    #[error("the database is read-only")]
    ReadOnly,
    #[error("no connection became free in time")]
    PoolExhausted,
    #[error("the connections are closed")]
    Closed,
    /// Of this machine and the database, by so many seconds.
    #[error("this machine's clock is {0} s from the database's: nothing is pruned or leased until they agree")]
    ClocksApart(i64),
    #[error("the database holds something the schema forbids: {0}")]
    Corrupt(&'static str),
}

/// What a fault before COMMIT calls for. In each case the transaction is rolled back and nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Somebody else inserted the same row first: run again, and see it.
    KeyTaken,
    /// A counter was written by somebody else after it was read: run again, and lock it first.
    Moved,
    /// Run again.
    Deadlock,
    /// Run again.
    Serialization,
    /// A row stayed locked by someone else for longer than the lock timeout, or the statement was cancelled: by its own
    /// time limit, or by hand.
    Blocked,
    /// The database does not answer, or refuses to work at all.
    Unavailable,
    /// Something about these very commands.
    Poisoned,
}

impl StoreError {
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Database(sqlx::Error::Database(error)) => kind_of_code(error.as_ref()),
            Self::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed,
            ) => FaultKind::Unavailable,
            Self::TimedOut | Self::ReadOnly | Self::PoolExhausted | Self::Closed => FaultKind::Unavailable,
            Self::Blocked => FaultKind::Blocked,
            Self::Database(_) | Self::ClocksApart(_) | Self::Corrupt(_) => FaultKind::Poisoned,
        }
    }

    /// Whether an error of the statement that commits proves that nothing was committed. PostgreSQL raises an ERROR only
    /// after it has decided to abort the transaction. A FATAL ends the connection and may also be a pooler's, which
    /// cannot know; so may the codes about connections and unknown completion.
    pub fn proves_rollback(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        let is_error = error
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|error| matches!(error.severity(), PgSeverity::Error));
        let code = error.code().unwrap_or_default();
        is_error && !code.starts_with("08") && code != "40003"
    }

    /// What went wrong, for everybody's eyes: no statement, no value of a row, no name of a host.
    pub fn cause(&self) -> String {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default();
                match error.constraint().or(error.table()) {
                    Some(place) => format!("PostgreSQL refused: SQLSTATE {code}, {place}"),
                    None => format!("PostgreSQL refused: SQLSTATE {code}"),
                }
            }
            Self::Database(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => {
                "the connection to the database broke".to_owned()
            }
            Self::Database(_) => "the database gave an unexpected answer".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether PostgreSQL itself said so, which then does answer.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(_)))
    }

    /// Whether it says more about the connection than about the work: that broke, or leads to no writer.
    pub fn condemns_connection(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => match error.code().as_deref() {
                Some("25006") => true,
                Some(code) => code.starts_with("08") || code.starts_with("57P"),
                None => false,
            },
            Self::ReadOnly => true,
            _ => self.kind() == FaultKind::Unavailable,
        }
    }
}

fn is_of(error: &(dyn DatabaseError + 'static), constraint: &str) -> bool {
    error.constraint().is_some_and(|name| name.starts_with(constraint))
}

/// PostgreSQL, appendix A: error codes.
fn kind_of_code(error: &(dyn DatabaseError + 'static)) -> FaultKind {
    let code = error.code().unwrap_or_default();
    match code.as_ref() {
        // Another batch brought the same new agent, or a reset removed the known one.
        "23505" if is_of(error, "agents_pkey") => FaultKind::Moved,
        "23503" if is_of(error, "usage_counters_agent_fkey") => FaultKind::Moved,
        // The two that another commit may bring first. A conflict of any other constraint comes again with each attempt,
        // as when a sequence is behind its table. Citus adds a suffix to the name.
        "23505" if is_of(error, "idempotency_keys_pkey") || is_of(error, "services_pkey") => FaultKind::KeyTaken,
        // How `batch::write` takes itself back: nothing else of ours divides.
        "22012" => FaultKind::Moved,
        "40P01" => FaultKind::Deadlock,
        "40001" => FaultKind::Serialization,
        "55P03" | "57014" => FaultKind::Blocked,
        // A server that turned read-only, as a former primary does.
        "25006" => FaultKind::Unavailable,
        // Connection, resources, operator, system: nothing about our commands.
        other => match other.get(..2) {
            Some("08" | "28" | "3D" | "53" | "57" | "58") => FaultKind::Unavailable,
            _ => FaultKind::Poisoned,
        },
    }
}
