//! The table `usage_counters`: one row per pair. lifetime = outstanding + settled + reset, always.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::usage::Pair;

use super::{StoreError, corrupt};

/// One pair of one tenant: the primary key. Sorted, it is the order in which rows are locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId {
    pub tenant: Tenant,
    pub pair: Pair,
}

/// A counter after requests were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub outstanding: i64,
    pub lifetime: i64,
}

/// The columns of a list of counters, as PostgreSQL takes lists.
struct Columns<'a> {
    tenants: Vec<&'a str>,
    agents: Vec<&'a str>,
    services: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn of(ids: impl Iterator<Item = &'a CounterId>) -> Self {
        let mut columns = Self { tenants: Vec::new(), agents: Vec::new(), services: Vec::new() };
        for id in ids {
            columns.tenants.push(id.tenant.as_str());
            columns.agents.push(id.pair.agent.as_str());
            columns.services.push(id.pair.service_id.as_str());
        }
        columns
    }
}

/// What a batch adds to one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addition {
    pub requests: i64,
    /// Rank of the pair's first record in the batch, from 1: new pairs are listed in this order, not in that of locking.
    pub arrival: i64,
}

/// Adds requests to counters, which must be sorted and distinct, and makes those that do not exist.
/// The result has the order of `added`.
pub async fn add(connection: &mut PgConnection, added: &[(&CounterId, Addition)]) -> Result<Vec<Counter>, StoreError> {
    let columns = Columns::of(added.iter().map(|(id, _)| *id));
    let requests: Vec<i64> = added.iter().map(|(_, addition)| addition.requests).collect();
    let arrivals: Vec<i64> = added.iter().map(|(_, addition)| addition.arrival).collect();
    let rows = sqlx::query!(
        "-- usage::add
        INSERT INTO usage_counters AS counter (tenant, agent, service_id, outstanding, lifetime, list_position)
        OVERRIDING SYSTEM VALUE
        SELECT tenant, agent, service_id, requests, requests, positions.drawn[arrival]
        FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
            AS added (tenant, agent, service_id, requests, arrival)
        CROSS JOIN (
            SELECT ARRAY(SELECT nextval(pg_get_serial_sequence('usage_counters', 'list_position'))
                         FROM generate_series(1, cardinality($1::text[]))) AS drawn
        ) AS positions
        ON CONFLICT (tenant, agent, service_id) DO UPDATE
        SET outstanding = counter.outstanding + excluded.outstanding,
            lifetime = counter.lifetime + excluded.lifetime
        RETURNING tenant, agent, service_id, outstanding, lifetime",
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
        &requests,
        &arrivals,
    )
    .fetch_all(connection)
    .await?;
    // PostgreSQL returns rows in the order of the list; money does not rest on a habit, so check it.
    let in_order = rows.len() == added.len()
        && rows.iter().zip(added).all(|(row, (id, _))| {
            row.service_id == id.pair.service_id.as_str()
                && row.agent == id.pair.agent.as_str()
                && row.tenant == id.tenant.as_str()
        });
    if !in_order {
        return Err(corrupt("counters came back in another order"));
    }
    Ok(rows.iter().map(|row| Counter { outstanding: row.outstanding, lifetime: row.lifetime }).collect())
}

/// Locks counters, which must be sorted, until the transaction ends.
/// The result has the order of `ids` and holds what is outstanding; none for a pair never seen.
pub async fn lock(connection: &mut PgConnection, ids: &[&CounterId]) -> Result<Vec<Option<i64>>, StoreError> {
    let columns = Columns::of(ids.iter().copied());
    let rows = sqlx::query!(
        r#"-- usage::lock
        SELECT wanted.position AS "position!", counter.outstanding AS "outstanding!"
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS wanted (tenant, agent, service_id, position)
        CROSS JOIN LATERAL (
            SELECT outstanding FROM usage_counters
            WHERE usage_counters.tenant = wanted.tenant AND usage_counters.agent = wanted.agent
              AND usage_counters.service_id = wanted.service_id
            LIMIT 1
            FOR NO KEY UPDATE
        ) AS counter"#,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
    )
    .fetch_all(connection)
    .await?;
    let mut outstanding = vec![None; ids.len()];
    for row in rows {
        *outstanding.get_mut(row.position as usize - 1).ok_or_else(|| corrupt("position"))? = Some(row.outstanding);
    }
    Ok(outstanding)
}

/// Moves requests from outstanding to settled, on counters that are sorted, distinct and locked.
pub async fn drain(connection: &mut PgConnection, drained: &[(&CounterId, i64)]) -> Result<(), StoreError> {
    let columns = Columns::of(drained.iter().map(|(id, _)| *id));
    let requests: Vec<i64> = drained.iter().map(|(_, requests)| *requests).collect();
    // An upsert that always finds its row: unlike UPDATE … FROM it cannot be planned as a scan of the table.
    let changed = sqlx::query!(
        "-- usage::drain
        INSERT INTO usage_counters AS counter (tenant, agent, service_id, outstanding, lifetime, settled)
        SELECT tenant, agent, service_id, 0, requests, requests
        FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS drained (tenant, agent, service_id, requests)
        ON CONFLICT (tenant, agent, service_id) DO UPDATE
        SET outstanding = counter.outstanding - excluded.settled,
            settled = counter.settled + excluded.settled
        RETURNING counter.outstanding",
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
        &requests,
    )
    .fetch_all(connection)
    .await?;
    if changed.len() != drained.len() || changed.iter().any(|row| row.outstanding != 0) {
        return Err(corrupt("a drained counter is not at zero"));
    }
    Ok(())
}

/// Which of `ids` have something outstanding; the result has their order.
pub async fn above_zero(connection: &mut PgConnection, ids: &[&CounterId]) -> Result<Vec<bool>, StoreError> {
    let columns = Columns::of(ids.iter().copied());
    let positions = sqlx::query_scalar!(
        r#"-- usage::above_zero
        SELECT wanted.position AS "position!"
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS wanted (tenant, agent, service_id, position)
        CROSS JOIN LATERAL (
            SELECT outstanding FROM usage_counters
            WHERE usage_counters.tenant = wanted.tenant AND usage_counters.agent = wanted.agent
              AND usage_counters.service_id = wanted.service_id
            LIMIT 1
        ) AS counter
        WHERE counter.outstanding > 0"#,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
    )
    .fetch_all(connection)
    .await?;
    let mut above = vec![false; ids.len()];
    for position in positions {
        *above.get_mut(position as usize - 1).ok_or_else(|| corrupt("position"))? = true;
    }
    Ok(above)
}

/// All services an agent has used, in the order of their first record.
pub async fn services_of_agent(
    connection: &mut PgConnection,
    tenant: &Tenant,
    agent: &str,
) -> Result<Vec<ServiceId>, StoreError> {
    let services = sqlx::query_scalar!(
        "-- usage::services_of_agent
        SELECT service_id FROM usage_counters WHERE tenant = $1 AND agent = $2 ORDER BY list_position",
        tenant.as_str(),
        agent,
    )
    .fetch_all(connection)
    .await?;
    Ok(services.into_iter().map(ServiceId::from_stored).collect())
}

/// What is outstanding of one pair; 0 if it was never seen.
pub async fn outstanding(connection: &mut PgConnection, tenant: &Tenant, pair: &Pair) -> Result<i64, StoreError> {
    let outstanding = sqlx::query_scalar!(
        "-- usage::outstanding
        SELECT outstanding FROM usage_counters WHERE tenant = $1 AND agent = $2 AND service_id = $3",
        tenant.as_str(),
        pair.agent.as_str(),
        pair.service_id.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(outstanding.unwrap_or(0))
}
