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
    #[error("the commit lost a race")]
    Conflict(Conflict),
    /// Of this machine and the database, by so many seconds.
    #[error("this machine's clock is {0} s from the database's: nothing is pruned or leased until they agree")]
    ClocksApart(i64),
    #[error("the database holds something the schema forbids: {0}")]
    Corrupt(&'static str),
}

/// What a commit was decided on and no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// A counter was written, or a pair or an agent inserted.
    Version,
    /// A record was stored under one of the keys.
    Key,
    /// The terms of a tenant changed.
    Terms,
}

/// What a fault before COMMIT calls for. In each case the transaction is rolled back and nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// What the commit was decided on has changed: decide it again.
    Conflict(Conflict),
    /// Run again.
    Deadlock,
    /// Run again.
    Serialization,
    /// A row stayed locked by another transaction for longer than the lock timeout, or the statement was cancelled: by its
    /// own time limit, or by hand.
    LockTimeout,
    /// The database does not answer, or refuses to work at all.
    Unavailable,
    /// Something about these very commands.
    Rejected,
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
            Self::Blocked => FaultKind::LockTimeout,
            Self::Conflict(conflict) => FaultKind::Conflict(*conflict),
            Self::Database(_) | Self::ClocksApart(_) | Self::Corrupt(_) => FaultKind::Rejected,
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

/// PostgreSQL, appendix A: error codes. Those of class OC are raised by `refuse_commit`.
fn kind_of_code(error: &(dyn DatabaseError + 'static)) -> FaultKind {
    let code = error.code().unwrap_or_default();
    match code.as_ref() {
        "OC001" => FaultKind::Conflict(Conflict::Version),
        "OC002" => FaultKind::Conflict(Conflict::Key),
        "OC003" => FaultKind::Conflict(Conflict::Terms),
        // A reset removed the agent of a new pair.
        "23503" if error.constraint().is_some_and(|name| name.starts_with("usage_counters_agent_id_fkey")) => {
            FaultKind::Conflict(Conflict::Version)
        }
        "40P01" => FaultKind::Deadlock,
        "40001" => FaultKind::Serialization,
        "55P03" | "57014" => FaultKind::LockTimeout,
        // A server that turned read-only, as a former primary does.
        "25006" => FaultKind::Unavailable,
        // Connection, resources, operator, system: nothing about our commands.
        other => match other.get(..2) {
            Some("08" | "28" | "3D" | "53" | "57" | "58") => FaultKind::Unavailable,
            _ => FaultKind::Rejected,
        },
    }
}
