//! The table `usage_counters`: one row per pair. lifetime = outstanding + settled + reset, always.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;

use super::{StoreError, corrupt};

/// One pair of one tenant: the primary key. Sorted, it is the order in which rows are locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId {
    pub tenant: Tenant,
    pub pair: Pair,
}

/// What became of the requests of a pair. Its lifetime is the sum of the three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub outstanding: i64,
    pub settled: i64,
    pub reset: i64,
    /// Begins at random and grows by one with each write; 0 for a pair never seen.
    pub version: i64,
}

/// The columns of a list of pairs, as PostgreSQL takes lists.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub tenants: Vec<&'a str>,
    pub agents: Vec<&'a str>,
    pub services: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    pub fn of(ids: impl Iterator<Item = &'a CounterId>) -> Self {
        let mut columns = Self::default();
        for id in ids {
            columns.tenants.push(id.tenant.as_str());
            columns.agents.push(id.pair.agent.as_str());
            columns.services.push(id.pair.service_id.as_str());
        }
        columns
    }
}

/// Locks the counters of `ids`, which must be sorted, until the transaction ends. Pairs never seen are passed over.
pub async fn lock(connection: &mut PgConnection, ids: &[CounterId]) -> Result<(), StoreError> {
    let columns = Columns::of(ids.iter());
    sqlx::query!(
        r#"-- usage::lock
        SELECT counter.locked AS "locked!"
        FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (tenant, agent, service_id)
        CROSS JOIN LATERAL (
            SELECT true AS locked FROM usage_counters
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
    Ok(())
}

/// All services that each of these agents has used, each agent's in the order of their first record.
/// The result has the order of `agents`.
pub async fn services_of_agents(
    connection: &mut PgConnection,
    agents: &[(&Tenant, &AgentId)],
) -> Result<Vec<Vec<ServiceId>>, StoreError> {
    let tenants: Vec<&str> = agents.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let names: Vec<&str> = agents.iter().map(|(_, agent)| agent.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- usage::services_of_agents
        SELECT wanted.position AS "position!", used.service_id AS "service_id!"
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (tenant, agent, position)
        CROSS JOIN LATERAL (
            SELECT service_id FROM usage_counters
            WHERE usage_counters.tenant = wanted.tenant AND usage_counters.agent = wanted.agent
            ORDER BY list_position, service_id
        ) AS used"#,
        tenants as _,
        names as _,
    )
    .fetch_all(connection)
    .await?;
    let mut services = vec![Vec::new(); agents.len()];
    for row in rows {
        let place = services.get_mut(row.position as usize - 1).ok_or_else(|| corrupt("position"))?;
        place.push(ServiceId::from_stored(row.service_id));
    }
    Ok(services)
}

/// What settling a pair now would be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// 0 for a pair never seen.
    pub outstanding: i64,
    /// None: the service is not registered.
    pub price_stroops: Option<i64>,
}

/// In the order of `ids`.
pub async fn quotes(connection: &mut PgConnection, ids: &[CounterId]) -> Result<Vec<Quoted>, StoreError> {
    let columns = Columns::of(ids.iter());
    let quotes = sqlx::query_as!(
        Quoted,
        r#"-- usage::quotes
        SELECT coalesce(counter.outstanding, 0) AS "outstanding!", service.price_stroops AS "price_stroops?"
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS wanted (tenant, agent, service_id, place)
        LEFT JOIN LATERAL (
            SELECT outstanding FROM usage_counters
            WHERE usage_counters.tenant = wanted.tenant AND usage_counters.agent = wanted.agent
              AND usage_counters.service_id = wanted.service_id
            LIMIT 1
        ) AS counter ON true
        LEFT JOIN LATERAL (
            SELECT price_stroops FROM services
            WHERE services.tenant = wanted.tenant AND services.service_id = wanted.service_id
            LIMIT 1
        ) AS service ON true
        ORDER BY place"#,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(quotes)
}
