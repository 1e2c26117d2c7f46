//! Writes all changes of a commit. Those that most commits make are one statement, which also compares the data that
//! the commit is based on.

use sqlx::PgConnection;

use crate::domain::cell::Dialect;
use crate::store::StoreError;
use crate::store::server::RESET_LOCK;

use super::changes::Changes;
use super::{citus, rare};

/// Writes everything or nothing. Fails with [`Conflict`](crate::store::FaultKind) if a counter has another version, a
/// key is already stored, or the terms of a tenant have changed (SQLSTATE `OC001` to `OC003`). Needs a transaction,
/// unless the changes are [one statement](Changes::is_one_statement), and always on Citus.
pub async fn write(connection: &mut PgConnection, dialect: Dialect, changes: &Changes<'_>) -> Result<(), StoreError> {
    let removed = rare::write_before(connection, dialect, changes).await?;
    match dialect {
        Dialect::PostgreSql => write_common(connection, changes).await?,
        Dialect::Citus => citus::write_common(connection, changes).await?,
    }
    rare::write_after(connection, changes, &removed).await?;
    match dialect {
        Dialect::PostgreSql => Ok(()),
        // Last, so that the least time passes between the comparison and the COMMIT.
        Dialect::Citus => citus::compare_terms(connection, changes).await,
    }
}

async fn write_common(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    // The parts run in this order: counters and keys, whose rows other commits may have locked, then the checks, then
    // the rest. The totals are last, because every commit of a lane writes the same rows of them.
    sqlx::query!(
        "-- commit::write
        WITH reset_lock AS MATERIALIZED (
            SELECT pg_advisory_xact_lock_shared($1) AS held
        ), counters AS (
            UPDATE usage_counters AS counter
            SET outstanding = change.outstanding, settled = change.settled, reset = change.reset, version = $2
            FROM reset_lock CROSS JOIN unnest($3::counter_change[]) AS change
            WHERE counter.pair_id = change.pair_id AND counter.version = change.version
            RETURNING 1
        ), keys AS (
            INSERT INTO idempotency_keys
                (caller, key, method, path, request_hash, status, response, request_id, attempt_id, created_at, expires_at)
            SELECT caller, key, method, path, request_hash, status, response, request_id, $2, $5, $6
            FROM reset_lock CROSS JOIN unnest($4::new_idempotency_key[]) AS new_key
            ON CONFLICT (key, caller) DO NOTHING
            RETURNING 1
        ), runs AS (
            INSERT INTO event_runs (tenant_id, position, events, recorded_at, type, payloads)
            SELECT tenant_id, coalesce(position, nextval('event_positions')), events, $5, type, payloads
            FROM unnest($7::new_event_run[]) AS run
        ), sums AS (
            INSERT INTO totals AS total (tenant_id, service_id, shard, pairs_above_zero, outstanding, recorded, events)
            SELECT tenant_id, service_id, $8, pairs_above_zero, outstanding, recorded, events
            FROM unnest($9::totals_change[]) AS change
            ON CONFLICT (tenant_id, service_id, shard) DO UPDATE
            SET pairs_above_zero = total.pairs_above_zero + excluded.pairs_above_zero,
                outstanding = total.outstanding + excluded.outstanding,
                recorded = total.recorded + excluded.recorded,
                events = total.events + excluded.events
        ), caller_sums AS (
            INSERT INTO caller_totals AS total (caller, shard, records, bytes)
            SELECT caller, $8, records, bytes FROM unnest($10::caller_change[]) AS change
            ON CONFLICT (caller, shard) DO UPDATE
            SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes
        )
        SELECT CASE
            WHEN (SELECT count(*) FROM counters) <> cardinality($3) THEN refuse_commit('OC001')
            WHEN (SELECT count(*) FROM keys) <> cardinality($4) THEN refuse_commit('OC002')
            ELSE refuse_changed_terms($11::text[], $12)
        END AS refused",
        RESET_LOCK,
        changes.attempt_id,
        changes.counters.as_slice() as _,
        changes.keys.as_slice() as _,
        changes.now.to_date_time(),
        changes.expires_at.to_date_time(),
        changes.event_runs.as_slice() as _,
        changes.shard,
        changes.totals.as_slice() as _,
        changes.callers.as_slice() as _,
        changes.terms.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        &changes.terms.iter().map(|(_, revision)| *revision).collect::<Vec<_>>(),
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
