//! What all checks share: the part of the rows that a check reads, and how it sends its findings.

use std::time::Duration;

use futures_util::{TryStream, TryStreamExt};
use tokio::sync::mpsc::Sender;

use crate::store::StoreError;

/// Time limit of PostgreSQL for the next row.
const ROW_LIMIT: Duration = Duration::from_secs(3600);

/// A description of one error that was found. It contains no idempotency key and no response.
pub type Finding = String;

/// A range of tenants or, for idempotency records, of positions in the table: from `from` to before `to`.
#[derive(Clone, Debug)]
pub struct Part {
    pub from: String,
    pub to: Option<String>,
}

/// Why the audit ended early.
pub enum Ended {
    /// The receiver of the findings was dropped.
    Enough,
    Failed(StoreError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Reads the next row. With large tables the first row takes minutes.
pub async fn next<T>(rows: &mut (impl TryStream<Ok = T, Error = sqlx::Error> + Unpin)) -> Result<Option<T>, Ended> {
    match tokio::time::timeout(ROW_LIMIT, rows.try_next()).await {
        Ok(row) => Ok(row?),
        Err(_) => Err(Ended::Failed(StoreError::TimedOut)),
    }
}

pub async fn tell(findings: &Sender<Finding>, finding: Finding) -> Result<(), Ended> {
    findings.send(finding).await.map_err(|_| Ended::Enough)
}
