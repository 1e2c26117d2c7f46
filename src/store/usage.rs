//! The table `usage_counters`: one row for each pair.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::{Count, Price};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;

use super::{StoreError, corrupt};

/// One pair of one tenant: the primary key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId {
    pub tenant: Tenant,
    pub pair: Pair,
}

/// The requests of a pair. The sum of the three is the number of requests ever recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Counters are locked in the order of this number.
    pub pair_id: i64,
    pub outstanding: i64,
    pub settled: i64,
    pub reset: i64,
    /// A random number that each write draws.
    pub version: i64,
}

/// The columns of a list of pairs, as array parameters.
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

/// Locks the counters of `ids` in the order of their numbers until the transaction ends. Returns them in the order of
/// `ids`; `None` for a pair that does not exist.
pub async fn lock(connection: &mut PgConnection, ids: &[CounterId]) -> Result<Vec<Option<Counter>>, StoreError> {
    let columns = Columns::of(ids.iter());
    let rows = sqlx::query!(
        r#"-- usage::lock
        SELECT wanted.number AS "number!", counter.pair_id AS "pair_id!", counter.outstanding AS "outstanding!",
               counter.settled AS "settled!", counter.reset AS "reset!", counter.version AS "version!"
        FROM (
            SELECT named.number, found.pair_id
            FROM unnest($1::text[], $2::text[], $3::text[])
                WITH ORDINALITY AS named (tenant_id, agent_id, service_id, number)
            CROSS JOIN LATERAL (
                SELECT pair_id FROM usage_counters
                WHERE usage_counters.tenant_id = named.tenant_id AND usage_counters.agent_id = named.agent_id
                  AND usage_counters.service_id = named.service_id
                LIMIT 1
            ) AS found
            ORDER BY found.pair_id
        ) AS wanted
        CROSS JOIN LATERAL (
            SELECT pair_id, outstanding, settled, reset, version FROM usage_counters
            WHERE usage_counters.pair_id = wanted.pair_id
            LIMIT 1
            FOR NO KEY UPDATE
        ) AS counter"#,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
    )
    .fetch_all(connection)
    .await?;
    let mut counters = vec![None; ids.len()];
    for row in rows {
        let counter = counters.get_mut(row.number as usize - 1).ok_or_else(|| corrupt("number"))?;
        *counter = Some(Counter {
            pair_id: row.pair_id,
            outstanding: row.outstanding,
            settled: row.settled,
            reset: row.reset,
            version: row.version,
        });
    }
    Ok(counters)
}

/// The pairs of an agent that a settlement covers, read at one moment.
pub type AgentPairs = Vec<(ServiceId, Counter)>;

/// All pairs of each agent in the order of their first records, in the order of `agents`. `None` for an agent with more
/// than `pairs_max`.
pub async fn pairs_of_agents(
    connection: &mut PgConnection,
    agents: &[(&Tenant, &AgentId)],
    pairs_max: usize,
) -> Result<Vec<Option<AgentPairs>>, StoreError> {
    let rows = sqlx::query!(
        r#"-- usage::pairs_of_agents
        SELECT wanted.number AS "number!", used.services AS "services!", used.pair_ids AS "pair_ids!",
               used.outstanding AS "outstanding!", used.settled AS "settled!", used.reset AS "reset!",
               used.versions AS "versions!"
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (tenant_id, agent_id, number)
        CROSS JOIN LATERAL (
            SELECT count(*) AS pairs, coalesce(array_agg(service_id::text), '{}') AS services,
                   coalesce(array_agg(pair_id), '{}') AS pair_ids, coalesce(array_agg(outstanding), '{}') AS outstanding,
                   coalesce(array_agg(settled), '{}') AS settled, coalesce(array_agg(reset), '{}') AS reset,
                   coalesce(array_agg(version), '{}') AS versions
            FROM (
                SELECT service_id, pair_id, outstanding, settled, reset, version FROM usage_counters
                WHERE usage_counters.tenant_id = wanted.tenant_id AND usage_counters.agent_id = wanted.agent_id
                LIMIT $3 + 1
            ) AS first
        ) AS used
        WHERE used.pairs <= $3"#,
        agents.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        agents.iter().map(|(_, agent)| agent.as_str()).collect::<Vec<_>>() as _,
        pairs_max as i64,
    )
    .fetch_all(connection)
    .await?;
    let mut pairs = vec![None; agents.len()];
    for row in rows {
        let of_agent = pairs.get_mut(row.number as usize - 1).ok_or_else(|| corrupt("number"))?;
        let sums = row.outstanding.into_iter().zip(row.settled).zip(row.reset);
        let counters = row.pair_ids.into_iter().zip(sums).zip(row.versions);
        let counters = counters.map(|((pair_id, ((outstanding, settled), reset)), version)| Counter {
            pair_id,
            outstanding,
            settled,
            reset,
            version,
        });
        let mut found: AgentPairs = row.services.into_iter().map(ServiceId::from_stored).zip(counters).collect();
        found.sort_unstable_by_key(|(_, counter)| counter.pair_id);
        *of_agent = Some(found);
    }
    Ok(pairs)
}

/// Maximum number of pairs that one call settles.
pub const SETTLED_MAX: usize = 5000;

/// Maximum length of the names of these pairs, so that the response stays below 1 MiB.
const SETTLED_BYTES_MAX: usize = 1_000_000;

/// Length of an item in that response without its name.
const ITEM_BYTES: usize = 120;

/// The pairs that the settlement of an agent covers, in the order of their first records, and whether more are due. All
/// pairs if one response can list them; otherwise those with outstanding usage. `priced_only` leaves out pairs whose
/// service is not registered.
pub async fn pairs_to_settle(
    connection: &mut PgConnection,
    tenant: &Tenant,
    agent: &AgentId,
    priced_only: bool,
) -> Result<(AgentPairs, bool), StoreError> {
    let all = pairs_of_agents(&mut *connection, &[(tenant, agent)], SETTLED_MAX).await?.pop().flatten();
    if let Some(all) = all.filter(|all| fitting(all) == all.len()) {
        return Ok((all, false));
    }
    let rows = sqlx::query!(
        "-- usage::pairs_to_settle
        SELECT counter.service_id, counter.pair_id, counter.outstanding, counter.settled, counter.reset, counter.version
        FROM usage_counters AS counter
        LEFT JOIN LATERAL (
            SELECT true AS is_there FROM services
            WHERE services.tenant_id = counter.tenant_id AND services.service_id = counter.service_id
            LIMIT 1
        ) AS price ON $4
        WHERE counter.tenant_id = $1 AND counter.agent_id = $2 AND counter.outstanding > 0
          AND (NOT $4 OR price.is_there)
        ORDER BY counter.pair_id LIMIT $3",
        tenant.as_str(),
        agent.as_str(),
        SETTLED_MAX as i64 + 1,
        priced_only,
    )
    .fetch_all(connection)
    .await?;
    let mut due: AgentPairs = rows
        .into_iter()
        .map(|row| {
            let (pair_id, version) = (row.pair_id, row.version);
            let counter =
                Counter { pair_id, outstanding: row.outstanding, settled: row.settled, reset: row.reset, version };
            (ServiceId::from_stored(row.service_id), counter)
        })
        .collect();
    let taken = fitting(&due);
    let has_more = taken < due.len();
    due.truncate(taken);
    Ok((due, has_more))
}

/// How many of these pairs one response can list.
fn fitting(pairs: &AgentPairs) -> usize {
    let mut bytes = 0;
    let fits = |(service_id, _): &&(ServiceId, Counter)| {
        bytes += service_id.as_str().len() + ITEM_BYTES;
        bytes <= SETTLED_BYTES_MAX
    };
    pairs.iter().take(SETTLED_MAX).take_while(fits).count()
}

/// What settling a pair would need to know now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// 0 for a pair that does not exist.
    pub outstanding: Count,
    /// `None` if the service is not registered.
    pub price_stroops: Option<Price>,
}

/// In the order of `ids`.
pub async fn quotes(connection: &mut PgConnection, ids: &[CounterId]) -> Result<Vec<Quoted>, StoreError> {
    let columns = Columns::of(ids.iter());
    let rows = sqlx::query!(
        r#"-- usage::quotes
        SELECT coalesce(counter.outstanding, 0) AS "outstanding!", service.price_stroops AS "price_stroops?"
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS wanted (tenant_id, agent_id, service_id, place)
        LEFT JOIN LATERAL (
            SELECT outstanding FROM usage_counters
            WHERE usage_counters.tenant_id = wanted.tenant_id AND usage_counters.agent_id = wanted.agent_id
              AND usage_counters.service_id = wanted.service_id
            LIMIT 1
        ) AS counter ON true
        LEFT JOIN LATERAL (
            SELECT price_stroops FROM services
            WHERE services.tenant_id = wanted.tenant_id AND services.service_id = wanted.service_id
            LIMIT 1
        ) AS service ON true
        ORDER BY place"#,
        columns.tenants as _,
        columns.agents as _,
        columns.services as _,
    )
    .fetch_all(connection)
    .await?;
    let quoted = rows.into_iter().map(|row| Quoted {
        outstanding: Count(row.outstanding),
        price_stroops: row.price_stroops.map(Price::from_stored),
    });
    Ok(quoted.collect())
}
