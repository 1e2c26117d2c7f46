//! How many rows each owner has in the tables that are capped: kept, never recounted.
//! Writers append changes without waiting for anyone; the janitor folds them into counts.

use sqlx::PgConnection;

use super::StoreError;

/// What is counted, per owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Rows of `idempotency_keys`, per caller.
    CallerReplies,
    /// Rows of `events`, per tenant.
    TenantEvents,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CallerReplies => "caller_replies",
            Self::TenantEvents => "tenant_events",
        }
    }
}

/// Rows that one commit added to, or one pruning removed from, what an owner has.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    pub kind: Kind,
    pub owner: &'a str,
    pub change: i64,
}

/// An owner and its rows.
#[derive(Clone, Debug)]
pub struct Owner {
    pub owner: String,
    pub records: i64,
}

/// Appends changes outside of a batch, as one row.
pub async fn append(connection: &mut PgConnection, changes: &[Change<'_>]) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    let kinds: Vec<&str> = changes.iter().map(|change| change.kind.name()).collect();
    let owners: Vec<&str> = changes.iter().map(|change| change.owner).collect();
    let amounts: Vec<i64> = changes.iter().map(|change| change.change).collect();
    sqlx::query!(
        "-- record_counts::append
        INSERT INTO record_changes (kinds, owners, changes) VALUES ($1::text[], $2::text[], $3)",
        kinds as _,
        owners as _,
        &amounts,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Folds the changes of at most `commits_max` commits into the counts. Returns of how many.
pub async fn fold(connection: &mut PgConnection, commits_max: i64) -> Result<i64, StoreError> {
    let folded = sqlx::query_scalar!(
        r#"-- record_counts::fold
        WITH taken AS (
            DELETE FROM record_changes
            WHERE ctid = ANY (ARRAY(SELECT ctid FROM record_changes LIMIT $1))
            RETURNING kinds, owners, changes
        ), summed AS (
            SELECT kind::text, owner::text, sum(change)::bigint AS change
            FROM taken, unnest(kinds, owners, changes) AS part (kind, owner, change) GROUP BY kind, owner
        ), counted AS (
            INSERT INTO record_counts AS counts (kind, owner, records)
            SELECT kind, owner, change FROM (
                SELECT kind, owner, change FROM summed
                UNION ALL
                SELECT 'all_replies', '*', sum(change)::bigint FROM summed
                WHERE kind = 'caller_replies' HAVING count(*) > 0
            ) AS changed ORDER BY kind, owner
            ON CONFLICT (kind, owner) DO UPDATE SET records = counts.records + excluded.records
        )
        SELECT count(*) AS "folded!" FROM taken"#,
        commits_max,
    )
    .fetch_one(connection)
    .await?;
    Ok(folded)
}

/// The owners with more than `cap` rows, the largest first, at most `owners_max` of them.
pub async fn over_cap(
    connection: &mut PgConnection,
    kind: Kind,
    cap: i64,
    owners_max: i64,
) -> Result<Vec<Owner>, StoreError> {
    let owners = sqlx::query_as!(
        Owner,
        "-- record_counts::over_cap
        SELECT owner, records FROM record_counts WHERE kind = $1 AND records > $2
        ORDER BY kind DESC, records DESC LIMIT $3",
        kind.name(),
        cap,
        owners_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(owners)
}

/// Rows of `idempotency_keys` in all, as of the last fold.
pub async fn all_replies(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let records = sqlx::query_scalar!(
        "-- record_counts::all_replies
        SELECT records FROM record_counts WHERE kind = 'all_replies' AND owner = '*'",
    )
    .fetch_optional(connection)
    .await?;
    Ok(records.unwrap_or(0))
}

/// Forgets at most `owners_max` owners that have nothing left.
pub async fn forget_empty(connection: &mut PgConnection, owners_max: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- record_counts::forget_empty
        DELETE FROM record_counts WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM record_counts WHERE kind = 'caller_replies' AND records = 0 LIMIT $1))",
        owners_max,
    )
    .execute(connection)
    .await?;
    Ok(())
}
