//! The table `verification`: one row with the result of the last background verification and the lease of the replica
//! that runs it. The database's clock decides when the next run is due.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::timestamp::Timestamp;

use super::StoreError;

/// The result of the last run.
#[derive(Clone, Debug, Default)]
pub struct LastVerification {
    /// `None` if there was no run.
    pub finished_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    /// Empty if there was no run.
    pub checks: Vec<CheckResult>,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    pub name: String,
    pub findings: i64,
    /// The number of steps that took too long: the check is incomplete.
    pub cancelled_steps: i64,
}

pub async fn read(connection: &mut PgConnection) -> Result<LastVerification, StoreError> {
    let row = sqlx::query!(
        r#"-- verification::read
        SELECT finished_at, duration_ms,
               ARRAY(SELECT key FROM jsonb_each_text(findings) ORDER BY key) AS "names!",
               ARRAY(SELECT value::bigint FROM jsonb_each_text(findings) ORDER BY key) AS "findings!",
               ARRAY(SELECT coalesce((cancelled_steps ->> key)::bigint, 0)
                     FROM jsonb_each_text(findings) ORDER BY key) AS "cancelled_steps!"
        FROM verification"#,
    )
    .fetch_one(connection)
    .await?;
    let checks = row.names.into_iter().zip(row.findings).zip(row.cancelled_steps);
    let checks = checks.map(|((name, findings), cancelled_steps)| CheckResult { name, findings, cancelled_steps });
    Ok(LastVerification {
        finished_at: row.finished_at.map(Timestamp::from),
        duration_ms: row.duration_ms,
        checks: checks.collect(),
    })
}

/// The right to run the verification until this moment.
#[derive(Clone, Copy, Debug)]
pub struct Lease(OffsetDateTime);

/// The result of [`claim`].
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    Mine(Lease),
    /// The last run ended less than the interval ago.
    NotDue,
    /// Another replica runs it, or the pause after a failed run has not passed.
    NotNow,
}

/// Takes the lease if a run is due.
pub async fn claim(connection: &mut PgConnection, interval: Duration, lease: Duration) -> Result<Turn, StoreError> {
    let row = sqlx::query!(
        r#"-- verification::claim
        WITH claimed AS (
            UPDATE verification SET not_before = now() + $2 * interval '1 s'
            WHERE (finished_at > now() - $1 * interval '1 s') IS NOT TRUE AND (not_before > now()) IS NOT TRUE
            RETURNING not_before
        )
        SELECT (SELECT not_before FROM claimed) AS lease,
               (finished_at > now() - $1 * interval '1 s') IS TRUE AS "is_recent!"
        FROM verification"#,
        interval.as_secs_f64(),
        lease.as_secs_f64(),
    )
    .fetch_one(connection)
    .await?;
    Ok(match row.lease {
        Some(until) => Turn::Mine(Lease(until)),
        None if row.is_recent => Turn::NotDue,
        None => Turn::NotNow,
    })
}

/// Renews the lease. Returns `None` if it has expired and another replica has taken over.
pub async fn renew(connection: &mut PgConnection, lease: Lease, length: Duration) -> Result<Option<Lease>, StoreError> {
    let until = sqlx::query_scalar!(
        r#"-- verification::renew
        UPDATE verification SET not_before = now() + $2 * interval '1 s' WHERE not_before = $1
        RETURNING not_before AS "not_before!""#,
        lease.0,
        length.as_secs_f64(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(until.map(Lease))
}

/// Stores the result of a run. False if another replica has taken over, or the result was to be forgotten.
pub async fn finish(
    connection: &mut PgConnection,
    lease: Lease,
    took: Duration,
    checks: &[CheckResult],
) -> Result<bool, StoreError> {
    let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    let findings: Vec<i64> = checks.iter().map(|check| check.findings).collect();
    let cancelled_steps: Vec<i64> = checks.iter().map(|check| check.cancelled_steps).collect();
    let finished = sqlx::query!(
        "-- verification::finish
        UPDATE verification
        SET not_before = NULL, finished_at = now(), duration_ms = $2,
            findings = (SELECT coalesce(jsonb_object_agg(name, number), '{}')
                        FROM unnest($3::text[], $4::bigint[]) AS found (name, number)),
            cancelled_steps = (SELECT coalesce(jsonb_object_agg(name, number), '{}')
                               FROM unnest($3::text[], $5::bigint[]) AS cancelled (name, number))
        WHERE not_before = $1",
        lease.0,
        took.as_millis() as i64,
        &names as _,
        &findings as _,
        &cancelled_steps as _,
    )
    .execute(connection)
    .await?;
    Ok(finished.rows_affected() > 0)
}

/// Deletes the result and ends the lease: a run that is under way has read what is gone. The next run is due at once.
pub async fn forget(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- verification::forget
        UPDATE verification
        SET not_before = NULL, finished_at = NULL, duration_ms = NULL, findings = '{}', cancelled_steps = '{}'"
    )
    .execute(connection)
    .await?;
    Ok(())
}
