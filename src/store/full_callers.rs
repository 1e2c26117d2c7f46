//! The table `full_callers`: callers that may not create idempotency records. The janitor writes it, and every replica
//! reads it.

use sqlx::PgConnection;

use super::StoreError;

pub async fn list(connection: &mut PgConnection, callers_max: i64) -> Result<Vec<String>, StoreError> {
    let callers = sqlx::query_scalar!("-- full_callers::list\nSELECT caller FROM full_callers LIMIT $1", callers_max);
    Ok(callers.fetch_all(connection).await?)
}

/// Replaces the list. Returns how many callers were added, and how many were removed.
pub async fn replace(connection: &mut PgConnection, callers: &[&str]) -> Result<(i64, i64), StoreError> {
    let changed = sqlx::query!(
        r#"-- full_callers::replace
        WITH gone AS (
            DELETE FROM full_callers WHERE caller <> ALL ($1::text[]) RETURNING caller
        ), added AS (
            INSERT INTO full_callers (caller) SELECT unnest($1::text[]) ON CONFLICT (caller) DO NOTHING RETURNING caller
        )
        SELECT (SELECT count(*) FROM added) AS "added!", (SELECT count(*) FROM gone) AS "gone!""#,
        callers as _,
    )
    .fetch_one(connection)
    .await?;
    Ok((changed.added, changed.gone))
}
