//! The audit of `verify`: checks every sum in the database, and the rules that the service enforces instead of the tables.
//! A check reads all rows or a part of them. Each sum belongs to one tenant or caller, so a part is a range of tenants.
//! Each check must run in one snapshot.

mod forms;
mod part;
mod sums;

use sqlx::PgConnection;
use tokio::sync::mpsc::{self, Sender};

use super::StoreError;
use part::{Ended, Part};

pub use part::Finding;

/// The approximate number of rows of `idempotency_keys` in a block.
const RECORDS_PER_BLOCK: i64 = 16;

/// What a check compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The counters of each pair with its settlements.
    Pairs,
    /// Each settlement: requests times price, and its pair exists.
    Settlements,
    /// The totals of each tenant with its rows.
    Totals,
    /// The totals of each caller with its idempotency records.
    Callers,
    /// The form of each counter, event run and total.
    Forms,
    /// The form of each idempotency record.
    Records,
    /// The totals of each service with its pairs, and each agent with its pairs.
    Lists,
    /// Each sequence with its table.
    Sequences,
}

impl Check {
    pub const ALL: [Self; 8] = [
        Self::Pairs,
        Self::Settlements,
        Self::Totals,
        Self::Callers,
        Self::Forms,
        Self::Records,
        Self::Lists,
        Self::Sequences,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Settlements => "settlements",
            Self::Totals => "totals",
            Self::Callers => "callers",
            Self::Forms => "forms",
            Self::Records => "records",
            Self::Lists => "lists",
            Self::Sequences => "sequences",
        }
    }
}

/// A check of a part of the rows.
#[derive(Clone, Debug)]
pub struct Step {
    pub check: Check,
    part: Part,
}

impl Step {
    fn whole(check: Check) -> Self {
        let from = if check == Check::Records { "(0,0)" } else { "" };
        Self { check, part: Part { from: from.to_owned(), to: None } }
    }
}

/// Plans all checks in steps of about `rows_max` rows. Two kinds of steps may be larger: a tenant is not split, and neither
/// are the records of all callers, because no index finds them by caller.
pub async fn steps(connection: &mut PgConnection, rows_max: i64) -> Result<Vec<Step>, StoreError> {
    let tenants = sqlx::query_scalar!(
        r#"-- audit::steps
        SELECT min(tenant_id) AS "start!"
        FROM (
            SELECT tenant_id, div(sum(rows) OVER (ORDER BY tenant_id) - rows, $1::bigint) AS part
            FROM (
                SELECT tenant_id, greatest(sum(pairs + agents + settlements + events), 1) AS rows
                FROM totals WHERE service_id = '' GROUP BY tenant_id
            ) AS sized
        ) AS parts
        GROUP BY part ORDER BY part"#,
        rows_max,
    )
    .fetch_all(&mut *connection)
    .await?;
    let blocks = sqlx::query_scalar!(
        r#"-- audit::steps
        SELECT pg_relation_size('idempotency_keys') / current_setting('block_size')::bigint AS "blocks!""#
    )
    .fetch_one(connection)
    .await?;
    let blocks_max = (rows_max / RECORDS_PER_BLOCK).max(1);
    let places: Vec<String> = (0..blocks).step_by(blocks_max as usize).map(|block| format!("({block},0)")).collect();
    let steps = Check::ALL.into_iter().flat_map(|check| match check {
        Check::Callers | Check::Sequences => vec![Step::whole(check)],
        Check::Records => split(check, &places),
        _ => split(check, &tenants),
    });
    Ok(steps.collect())
}

/// One step from each of `starts` to the next. The first step has no lower bound and the last has no upper bound.
fn split(check: Check, starts: &[String]) -> Vec<Step> {
    let mut steps = vec![Step::whole(check)];
    for start in starts.iter().skip(1) {
        if let Some(last) = steps.last_mut() {
            last.part.to = Some(start.clone());
        }
        steps.push(Step { check, part: Part { from: start.clone(), to: None } });
    }
    steps
}

/// Sends each error, until the receiver is dropped.
pub async fn everything(connection: &mut PgConnection, findings: Sender<Finding>) -> Result<(), StoreError> {
    for check in Check::ALL {
        if !run(connection, &Step::whole(check), &findings).await? {
            break;
        }
    }
    Ok(())
}

/// Returns the errors that one step finds, at most `findings_max`.
pub async fn find(connection: &mut PgConnection, step: &Step, findings_max: usize) -> Result<Vec<Finding>, StoreError> {
    let (sender, mut receiver) = mpsc::channel(1);
    let run = async move { run(connection, step, &sender).await };
    let collect = async move {
        let mut found = Vec::new();
        while found.len() < findings_max
            && let Some(finding) = receiver.recv().await
        {
            found.push(finding);
        }
        found
    };
    let (ended, found) = tokio::join!(run, collect);
    ended.map(|_| found)
}

/// Sends the errors that one step finds. Returns false if the receiver was dropped.
pub async fn run(connection: &mut PgConnection, step: &Step, findings: &Sender<Finding>) -> Result<bool, StoreError> {
    let Step { check, part } = step;
    let ended = match check {
        Check::Pairs => sums::pairs(connection, part, findings).await,
        Check::Settlements => sums::settlements(connection, part, findings).await,
        Check::Totals => sums::totals(connection, part, findings).await,
        Check::Callers => sums::callers(connection, findings).await,
        Check::Forms => forms::forms(connection, part, findings).await,
        Check::Records => forms::records(connection, part, findings).await,
        Check::Lists => sums::lists(connection, part, findings).await,
        Check::Sequences => forms::sequences(connection, findings).await,
    };
    match ended {
        Ok(()) => Ok(true),
        Err(Ended::Enough) => Ok(false),
        Err(Ended::Failed(error)) => Err(error),
    }
}

pub async fn count_pairs(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- audit::count_pairs
        SELECT count(*) AS "count!" FROM usage_counters"#
    );
    Ok(count.fetch_one(connection).await?)
}
