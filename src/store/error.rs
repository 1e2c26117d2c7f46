//! Errors of the database, classified by what to do about them.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::domain::cell::Dialect;
use crate::domain::keyring::Unreadable;

/// An error of the store. It is logged, and never shown to a client.
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
    /// The difference in seconds between the clocks of this machine and of the database.
    #[error("this machine's clock is {0} s from the database's: nothing is pruned or leased until they agree")]
    ClocksApart(i64),
    #[error("the secret of a webhook cannot be used: {0}")]
    Secret(#[from] Unreadable),
    #[error("the database holds something the schema forbids: {0}")]
    Corrupt(&'static str),
}

/// Data that a commit is based on and that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// A counter was written, or a pair or an agent was inserted.
    Version,
    /// A record was stored under one of the keys.
    Key,
    /// The terms of a tenant have changed.
    Terms,
}

/// What to do about a failure before COMMIT. In each case the transaction is rolled back and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The data that the commit is based on has changed. Decide it again.
    Conflict(Conflict),
    /// Run it again.
    Deadlock,
    /// Run it again.
    Serialization,
    /// Another transaction held a lock for longer than the lock timeout, or the statement was cancelled, by its time
    /// limit or manually.
    LockTimeout,
    /// The database does not respond, or refuses all work.
    Unavailable,
    /// The commands themselves were rejected.
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
            Self::Database(_) | Self::ClocksApart(_) | Self::Secret(_) | Self::Corrupt(_) => FaultKind::Rejected,
        }
    }

    /// Whether an error of the committing statement proves that nothing was committed. PostgreSQL raises an ERROR only
    /// after it has decided to abort the transaction. A FATAL error ends the connection and may come from a pooler,
    /// which does not know the outcome. The same applies to the codes about connections and unknown completion, and to
    /// every error of a node of Citus that forwards a COMMIT: the other node may have committed before the error.
    pub fn proves_rollback(&self, dialect: Dialect) -> bool {
        if dialect.is_citus() {
            return false;
        }
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        let is_error = error
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|error| matches!(error.severity(), PgSeverity::Error));
        let code = error.code().unwrap_or_default();
        is_error && !code.starts_with("08") && code != "40003"
    }

    /// The cause without statements, values of rows and host names.
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

    /// Whether PostgreSQL cancelled the statement, because it took too long or a person asked for it.
    pub fn is_cancellation(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(error)) if error.code().as_deref() == Some("57014"))
    }

    /// Whether PostgreSQL itself reported the error, so that it does respond.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(_)))
    }

    /// Whether the connection must be dropped: it is broken, or its server is not writable.
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

/// PostgreSQL, appendix A: error codes. `refuse_commit` raises those of class OC.
fn kind_of_code(error: &(dyn DatabaseError + 'static)) -> FaultKind {
    let code = error.code().unwrap_or_default();
    match code.as_ref() {
        "OC001" => FaultKind::Conflict(Conflict::Version),
        "OC002" => FaultKind::Conflict(Conflict::Key),
        "OC003" => FaultKind::Conflict(Conflict::Terms),
        // A reset has deleted the agent of a new pair.
        "23503" if error.constraint().is_some_and(|name| name.starts_with("usage_counters_agent_id_fkey")) => {
            FaultKind::Conflict(Conflict::Version)
        }
        "40P01" => FaultKind::Deadlock,
        "40001" => FaultKind::Serialization,
        "55P03" | "57014" => FaultKind::LockTimeout,
        // The server has become read-only, as a former primary does.
        "25006" => FaultKind::Unavailable,
        // Classes about connections, resources, operator intervention and the system.
        other => match other.get(..2) {
            Some("08" | "28" | "3D" | "53" | "57" | "58") => FaultKind::Unavailable,
            _ => FaultKind::Rejected,
        },
    }
}
