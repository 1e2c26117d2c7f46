//! The changes of most commits, and the inserts that need numbers, as one plain statement for each table, for a schema that
//! Citus distributes: it runs no INSERT inside WITH. `cell_identity` has one row. An INSERT … SELECT that reads a table of
//! the schema is sent to its node as it is; without a table its rows would be collected first.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::store::error::Conflict;
use crate::store::usage::Columns;
use crate::store::{StoreError, corrupt};

use super::changes::Changes;

/// Fails with a conflict if the terms of a tenant have changed or if one does not live here. A lock of the tenants' rows would
/// starve changes of the terms: later commits of a busy tenant would share it while a change waits.
pub async fn compare_terms(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    if changes.terms.is_empty() {
        return Ok(());
    }
    let rows = sqlx::query!(
        "-- commit::compare_terms
        SELECT tenant_id, terms_revision FROM tenants WHERE tenant_id = ANY ($1) AND residence IN ('here', 'departing')",
        changes.terms.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
    )
    .fetch_all(connection)
    .await?;
    let is_current = |(tenant, revision): &(&Tenant, i64)| {
        rows.iter().any(|row| row.tenant_id == tenant.as_str() && row.terms_revision == *revision)
    };
    if changes.terms.iter().all(is_current) { Ok(()) } else { Err(StoreError::Conflict(Conflict::Terms)) }
}

/// Fails with a conflict if a counter has another version, or a key is already stored. The order is that of
/// [`write`](super::write()).
pub async fn write_common(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    if update_counters(connection, changes).await? != changes.counters.len() as u64 {
        return Err(StoreError::Conflict(Conflict::Version));
    }
    if insert_keys(connection, changes).await? != changes.keys.len() as u64 {
        return Err(StoreError::Conflict(Conflict::Key));
    }
    insert_event_runs(connection, changes).await?;
    add_common_totals(connection, changes).await?;
    add_caller_totals(connection, changes).await
}

/// Returns the number of counters that had their version.
async fn update_counters(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<u64, StoreError> {
    let counters = &changes.counters;
    if counters.is_empty() {
        return Ok(0);
    }
    let updated = sqlx::query!(
        "-- commit::update_counters
        UPDATE usage_counters AS counter
        SET outstanding = change.outstanding, settled = change.settled, reset = change.reset, version = $1
        FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
            AS change (pair_id, version, outstanding, settled, reset)
        WHERE counter.pair_id = change.pair_id AND counter.version = change.version",
        changes.attempt_id,
        &counters.iter().map(|change| change.pair_id).collect::<Vec<_>>(),
        &counters.iter().map(|change| change.version).collect::<Vec<_>>(),
        &counters.iter().map(|change| change.outstanding).collect::<Vec<_>>(),
        &counters.iter().map(|change| change.settled).collect::<Vec<_>>(),
        &counters.iter().map(|change| change.reset).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected())
}

/// Returns the number of keys that were not stored before.
async fn insert_keys(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<u64, StoreError> {
    let keys = &changes.keys;
    if keys.is_empty() {
        return Ok(0);
    }
    let inserted = sqlx::query!(
        "-- commit::insert_keys
        INSERT INTO idempotency_keys
            (caller, key, method, path, request_hash, status, response, request_id, attempt_id, created_at, expires_at)
        SELECT new_key.caller, new_key.key, method, path, request_hash, status, response, request_id, $1, $2, $3
        FROM cell_identity
        CROSS JOIN unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::smallint[], $10::text[], $11::text[])
            AS new_key (caller, key, method, path, request_hash, status, response, request_id)
        ON CONFLICT (key, caller) DO NOTHING",
        changes.attempt_id,
        changes.now.to_date_time(),
        changes.expires_at.to_date_time(),
        keys.iter().map(|key| key.caller).collect::<Vec<_>>() as _,
        keys.iter().map(|key| key.key).collect::<Vec<_>>() as _,
        keys.iter().map(|key| key.method).collect::<Vec<_>>() as _,
        keys.iter().map(|key| key.path).collect::<Vec<_>>() as _,
        keys.iter().map(|key| key.request_hash).collect::<Vec<_>>() as _,
        &keys.iter().map(|key| key.status).collect::<Vec<_>>(),
        keys.iter().map(|key| key.response).collect::<Vec<_>>() as _,
        keys.iter().map(|key| key.request_id).collect::<Vec<_>>() as _,
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected())
}

async fn insert_event_runs(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    let runs = &changes.event_runs;
    if runs.is_empty() {
        return Ok(());
    }
    let positions: Option<Vec<i64>> = runs.iter().map(|run| run.position).collect();
    sqlx::query!(
        "-- commit::insert_event_runs
        INSERT INTO event_runs (tenant_id, position, events, recorded_at, type, payloads)
        SELECT tenant_id, position, events, $1, type, payloads
        FROM cell_identity
        CROSS JOIN unnest($2::text[], $3::bigint[], $4::smallint[], $5::text[], $6::text[])
            AS run (tenant_id, position, events, type, payloads)",
        changes.now.to_date_time(),
        runs.iter().map(|run| run.tenant_id).collect::<Vec<_>>() as _,
        &positions.ok_or_else(|| corrupt("a run of events without a position"))?,
        &runs.iter().map(|run| run.events).collect::<Vec<_>>(),
        runs.iter().map(|run| run.event_type).collect::<Vec<_>>() as _,
        runs.iter().map(|run| run.payloads.as_str()).collect::<Vec<_>>() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn add_common_totals(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    let totals = &changes.totals;
    if totals.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- commit::add_common_totals
        INSERT INTO totals AS total (tenant_id, service_id, shard, pairs_above_zero, outstanding, recorded, events)
        SELECT tenant_id, service_id, $1, pairs_above_zero, outstanding, recorded, events
        FROM cell_identity
        CROSS JOIN unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
            AS change (tenant_id, service_id, pairs_above_zero, outstanding, recorded, events)
        ON CONFLICT (tenant_id, service_id, shard) DO UPDATE
        SET pairs_above_zero = total.pairs_above_zero + excluded.pairs_above_zero,
            outstanding = total.outstanding + excluded.outstanding,
            recorded = total.recorded + excluded.recorded,
            events = total.events + excluded.events",
        changes.shard,
        totals.iter().map(|change| change.tenant_id).collect::<Vec<_>>() as _,
        totals.iter().map(|change| change.service_id).collect::<Vec<_>>() as _,
        &totals.iter().map(|change| change.pairs_above_zero).collect::<Vec<_>>(),
        &totals.iter().map(|change| change.outstanding).collect::<Vec<_>>(),
        &totals.iter().map(|change| change.recorded).collect::<Vec<_>>(),
        &totals.iter().map(|change| change.events).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn add_caller_totals(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    let callers = &changes.callers;
    if callers.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- commit::add_caller_totals
        INSERT INTO caller_totals AS total (caller, shard, records, bytes)
        SELECT caller, $1, records, bytes
        FROM cell_identity CROSS JOIN unnest($2::text[], $3::bigint[], $4::bigint[]) AS change (caller, records, bytes)
        ON CONFLICT (caller, shard) DO UPDATE
        SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes",
        changes.shard,
        callers.iter().map(|change| change.caller).collect::<Vec<_>>() as _,
        &callers.iter().map(|change| change.records).collect::<Vec<_>>(),
        &callers.iter().map(|change| change.bytes).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts agents, each with its order among them, from 1. Returns the number of those that were new.
pub async fn insert_numbered_agents(
    connection: &mut PgConnection,
    agents: &[(&str, &str, i64)],
    positions: &[i64],
) -> Result<u64, StoreError> {
    let inserted = sqlx::query!(
        "-- commit::insert_numbered_agents
        INSERT INTO agents (tenant_id, agent_id, list_position)
        OVERRIDING SYSTEM VALUE
        SELECT tenant_id, agent_id, list_position
        FROM cell_identity
        CROSS JOIN unnest($1::text[], $2::text[], $3::bigint[]) AS new_agent (tenant_id, agent_id, list_position)
        ON CONFLICT (tenant_id, agent_id) DO NOTHING",
        agents.iter().map(|(tenant, ..)| *tenant).collect::<Vec<_>>() as _,
        agents.iter().map(|(_, agent, _)| *agent).collect::<Vec<_>>() as _,
        &agents.iter().map(|(.., arrival)| positions[*arrival as usize - 1]).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected())
}

/// Returns the number of pairs that were new.
pub async fn insert_numbered_pairs(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<u64, StoreError> {
    let pairs = &changes.new_pairs;
    let columns = Columns::of(pairs.iter().map(|pair| pair.id));
    let inserted = sqlx::query!(
        "-- commit::insert_numbered_pairs
        INSERT INTO usage_counters (tenant_id, agent_id, service_id, pair_id, outstanding, settled, reset, version)
        OVERRIDING SYSTEM VALUE
        SELECT tenant_id, agent_id, service_id, pair_id, outstanding, settled, reset, $1
        FROM cell_identity
        CROSS JOIN unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
            AS new_pair (tenant_id, agent_id, service_id, pair_id, outstanding, settled, reset)
        ON CONFLICT (tenant_id, agent_id, service_id) DO NOTHING",
        changes.attempt_id,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
        &pairs.iter().map(|pair| changes.numbers.pairs[pair.arrival as usize - 1]).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.outstanding).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.settled).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.reset).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected())
}
