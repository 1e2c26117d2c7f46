//! Changes that few commits make, one plain statement for each table: new agents and pairs, settlements, rare totals,
//! the outbox, and expired records that are replaced.

use sqlx::PgConnection;

use crate::domain::cell::Dialect;
use crate::domain::settlement::Settlement;
use crate::store::error::Conflict;
use crate::store::usage::Columns;
use crate::store::{StoreError, outbox};

use super::changes::{Changes, RareTotals};
use super::citus;

/// Runs before the common statement, which needs the new rows, and needs expired records to be gone.
pub async fn write_before<'a>(
    connection: &mut PgConnection,
    dialect: Dialect,
    changes: &Changes<'a>,
) -> Result<Vec<(&'a str, i64)>, StoreError> {
    let removed = remove_expired(connection, changes).await?;
    if !changes.new_pairs.is_empty() {
        insert_agents(connection, dialect, changes).await?;
        insert_pairs(connection, dialect, changes).await?;
    }
    Ok(removed)
}

/// Runs after the common statement, which has locked the counters in the order of their numbers. The totals come last
/// again.
pub async fn write_after(
    connection: &mut PgConnection,
    changes: &Changes<'_>,
    removed: &[(&str, i64)],
) -> Result<(), StoreError> {
    if !changes.settlements.is_empty() {
        insert_settlements(connection, changes).await?;
    }
    if !changes.outbox.is_empty() {
        outbox::insert(connection, &changes.outbox, changes.now).await?;
    }
    if !changes.rare_totals.is_empty() {
        add_totals(connection, changes).await?;
    }
    if !removed.is_empty() {
        subtract_expired(connection, changes.shard, removed).await?;
    }
    Ok(())
}

/// Deletes expired records under the keys of `changes`. Returns the caller and the bytes of each. One statement for
/// each key, which is rare enough: with a list, or without IS TRUE, the planner could choose a scan while the table is
/// small.
async fn remove_expired<'a>(
    connection: &mut PgConnection,
    changes: &Changes<'a>,
) -> Result<Vec<(&'a str, i64)>, StoreError> {
    let mut removed = Vec::new();
    for id in &changes.expired {
        let bytes = sqlx::query_scalar!(
            r#"-- commit::remove_expired
            DELETE FROM idempotency_keys
            WHERE key = $1 AND caller = $2 AND (expires_at <= $3) IS TRUE
            RETURNING idempotency_record_bytes(caller, key, path, request_id, response) AS "bytes!""#,
            id.key,
            id.caller,
            changes.now.to_date_time(),
        )
        .fetch_optional(&mut *connection)
        .await?;
        removed.extend(bytes.map(|bytes| (id.caller.as_str(), bytes)));
    }
    Ok(removed)
}

/// Subtracts deleted records from the totals.
async fn subtract_expired(
    connection: &mut PgConnection,
    shard: i16,
    removed: &[(&str, i64)],
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- commit::subtract_expired
        INSERT INTO caller_totals AS total (caller, shard, records, bytes)
        SELECT caller, $1, -count(*), -sum(bytes)
        FROM unnest($2::text[], $3::bigint[]) AS removed (caller, bytes) GROUP BY caller ORDER BY caller
        ON CONFLICT (caller, shard) DO UPDATE
        SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes",
        shard,
        removed.iter().map(|(caller, _)| *caller).collect::<Vec<_>>() as _,
        &removed.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts the agents of new pairs. Fails with a conflict if another commit has inserted one.
async fn insert_agents(
    connection: &mut PgConnection,
    dialect: Dialect,
    changes: &Changes<'_>,
) -> Result<(), StoreError> {
    let new = changes.new_pairs.iter().filter_map(|pair| Some((pair.id, pair.agent_arrival?)));
    let mut agents: Vec<(&str, &str, i64)> =
        new.map(|(id, arrival)| (id.tenant.as_str(), id.pair.agent.as_str(), arrival)).collect();
    // Pairs are sorted by name, so those of one agent are adjacent and have the same order number.
    agents.dedup();
    if agents.is_empty() {
        return Ok(());
    }
    if dialect.is_citus() {
        return all_or_conflict(
            citus::insert_numbered_agents(connection, &agents, &changes.numbers.agents).await?,
            agents.len(),
        );
    }
    let inserted = sqlx::query!(
        "-- commit::insert_agents
        INSERT INTO agents (tenant_id, agent_id, list_position)
        OVERRIDING SYSTEM VALUE
        SELECT tenant_id, agent_id, drawn.positions[arrival]
        FROM (
            SELECT ARRAY(SELECT nextval(pg_get_serial_sequence('agents', 'list_position'))
                         FROM generate_series(1, cardinality($1::text[]))) AS positions
        ) AS drawn
        CROSS JOIN unnest($1::text[], $2::text[], $3::bigint[]) AS new_agent (tenant_id, agent_id, arrival)
        ON CONFLICT (tenant_id, agent_id) DO NOTHING",
        agents.iter().map(|(tenant, ..)| *tenant).collect::<Vec<_>>() as _,
        agents.iter().map(|(_, agent, _)| *agent).collect::<Vec<_>>() as _,
        &agents.iter().map(|(.., arrival)| *arrival).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    all_or_conflict(inserted.rows_affected(), agents.len())
}

async fn insert_pairs(
    connection: &mut PgConnection,
    dialect: Dialect,
    changes: &Changes<'_>,
) -> Result<(), StoreError> {
    let pairs = &changes.new_pairs;
    if dialect.is_citus() {
        return all_or_conflict(citus::insert_numbered_pairs(connection, changes).await?, pairs.len());
    }
    let columns = Columns::of(pairs.iter().map(|pair| pair.id));
    let inserted = sqlx::query!(
        "-- commit::insert_pairs
        INSERT INTO usage_counters (tenant_id, agent_id, service_id, pair_id, outstanding, settled, reset, version)
        OVERRIDING SYSTEM VALUE
        SELECT tenant_id, agent_id, service_id, drawn.pair_ids[arrival], outstanding, settled, reset, $1
        FROM (
            SELECT ARRAY(SELECT nextval(pg_get_serial_sequence('usage_counters', 'pair_id'))
                         FROM generate_series(1, cardinality($2::text[]))) AS pair_ids
        ) AS drawn
        CROSS JOIN unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
            AS new_pair (tenant_id, agent_id, service_id, arrival, outstanding, settled, reset)
        ON CONFLICT (tenant_id, agent_id, service_id) DO NOTHING",
        changes.attempt_id,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
        &pairs.iter().map(|pair| pair.arrival).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.outstanding).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.settled).collect::<Vec<_>>(),
        &pairs.iter().map(|pair| pair.reset).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    all_or_conflict(inserted.rows_affected(), pairs.len())
}

/// Fails with a conflict if another commit has inserted a row first. The batch is then decided again.
fn all_or_conflict(inserted: u64, wanted: usize) -> Result<(), StoreError> {
    if inserted == wanted as u64 { Ok(()) } else { Err(StoreError::Conflict(Conflict::Version)) }
}

async fn insert_settlements(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    let settlements = changes.settlements;
    let text = |read: fn(&Settlement) -> &str| settlements.iter().map(|(_, row)| read(row)).collect::<Vec<_>>();
    sqlx::query!(
        "-- commit::insert_settlements
        INSERT INTO settlements (tenant_id, settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops,
                                 settled_at, idempotency_key, request_id)
        SELECT tenant_id, settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops::numeric, $1,
               idempotency_key, request_id
        FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::text[],
                    $10::text[])
            AS bill (tenant_id, settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops,
                     idempotency_key, request_id)",
        changes.now.to_date_time(),
        settlements.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        text(|row| &row.id) as _,
        text(|row| row.agent.as_str()) as _,
        text(|row| row.service_id.as_str()) as _,
        &settlements.iter().map(|(_, row)| row.requests.0).collect::<Vec<_>>(),
        &settlements.iter().map(|(_, row)| row.price_stroops.stroops()).collect::<Vec<_>>(),
        &settlements.iter().map(|(_, row)| row.billed_stroops.to_string()).collect::<Vec<_>>(),
        settlements.iter().map(|(_, row)| row.idempotency_key.as_deref()).collect::<Vec<_>>() as _,
        text(|row| &row.request_id) as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn add_totals(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<(), StoreError> {
    let totals = &changes.rare_totals;
    let number = |read: fn(&RareTotals<'_>) -> i64| totals.iter().map(read).collect::<Vec<_>>();
    sqlx::query!(
        "-- commit::add_totals
        INSERT INTO totals AS total (tenant_id, service_id, shard, pairs, settlements, settled_stroops, agents, services,
                                     webhooks, api_keys)
        SELECT tenant_id, service_id, $1, pairs, settlements, settled_stroops::numeric, agents, services, webhooks, api_keys
        FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::bigint[], $8::bigint[],
                    $9::bigint[], $10::bigint[])
            AS change (tenant_id, service_id, pairs, settlements, settled_stroops, agents, services, webhooks, api_keys)
        ON CONFLICT (tenant_id, service_id, shard) DO UPDATE
        SET pairs = total.pairs + excluded.pairs,
            settlements = total.settlements + excluded.settlements,
            settled_stroops = total.settled_stroops + excluded.settled_stroops,
            agents = total.agents + excluded.agents,
            services = total.services + excluded.services,
            webhooks = total.webhooks + excluded.webhooks,
            api_keys = total.api_keys + excluded.api_keys",
        changes.shard,
        totals.iter().map(|change| change.tenant_id).collect::<Vec<_>>() as _,
        totals.iter().map(|change| change.service_id).collect::<Vec<_>>() as _,
        &number(|change| change.pairs),
        &number(|change| change.settlements),
        &totals.iter().map(|change| change.settled_stroops.to_string()).collect::<Vec<_>>(),
        &number(|change| change.agents),
        &number(|change| change.services),
        &number(|change| change.webhooks),
        &number(|change| change.api_keys),
    )
    .execute(connection)
    .await?;
    Ok(())
}
