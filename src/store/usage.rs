//! The table `usage_counters`: one row per pair.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;

use super::{StoreError, corrupt};

/// One pair of one tenant: the primary key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId {
    pub tenant: Tenant,
    pub pair: Pair,
}

/// What became of the requests of a pair. All that were ever recorded are the sum of the three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Counters are locked in the order of their numbers.
    pub pair_id: i64,
    pub outstanding: i64,
    pub settled: i64,
    pub reset: i64,
    /// Drawn at random by each write.
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

/// Locks the counters of `ids` until the transaction ends, in the order of their numbers, and reads them. In the order of
/// `ids`; none for a pair without a record.
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

/// The services of all pairs of an agent in the order of their first records, and that no more are due. None if there are
/// more than `pairs_max`.
pub async fn services_of_agent(
    connection: &mut PgConnection,
    tenant: &Tenant,
    agent: &AgentId,
    pairs_max: usize,
) -> Result<Option<(Vec<ServiceId>, bool)>, StoreError> {
    let services = first_services(connection, tenant, agent, pairs_max as i64 + 1).await?;
    let fit = services.len() <= pairs_max;
    Ok(fit.then(|| (services.into_iter().map(ServiceId::from_stored).collect(), false)))
}

async fn first_services(
    connection: &mut PgConnection,
    tenant: &Tenant,
    agent: &AgentId,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    let services = sqlx::query_scalar!(
        "-- usage::first_services
        SELECT service_id FROM (
            SELECT service_id, pair_id FROM usage_counters WHERE tenant_id = $1 AND agent_id = $2 LIMIT $3
        ) AS used
        ORDER BY pair_id",
        tenant.as_str(),
        agent.as_str(),
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(services)
}

/// Most pairs that one call settles.
pub const SETTLED_MAX: usize = 5000;

/// Bytes that the names of these pairs may have, so that the answer that lists them stays below 1 MiB.
const SETTLED_BYTES_MAX: usize = 1_000_000;

/// Bytes of an item of that answer without its name.
const ITEM_BYTES: usize = 120;

/// The services of an agent that a settlement is about, in the order of their first records, and whether more are due. All of
/// them if one answer can list them; else those with something outstanding, of which `priced_only` leaves out the
/// ones that are not registered.
pub async fn services_to_settle(
    connection: &mut PgConnection,
    tenant: &Tenant,
    agent: &AgentId,
    priced_only: bool,
) -> Result<(Vec<ServiceId>, bool), StoreError> {
    let limit = SETTLED_MAX as i64 + 1;
    let mut services = first_services(&mut *connection, tenant, agent, limit).await?;
    let mut taken = fitting(&services);
    if taken < services.len() {
        services = sqlx::query_scalar!(
            "-- usage::services_to_settle, due
            SELECT service_id FROM usage_counters AS counter
            WHERE tenant_id = $1 AND agent_id = $2 AND outstanding > 0
              AND (NOT $4 OR EXISTS (SELECT FROM services WHERE services.tenant_id = counter.tenant_id
                                                            AND services.service_id = counter.service_id))
            ORDER BY pair_id LIMIT $3",
            tenant.as_str(),
            agent.as_str(),
            limit,
            priced_only,
        )
        .fetch_all(connection)
        .await?;
        taken = fitting(&services);
    }
    let has_more = taken < services.len();
    services.truncate(taken);
    Ok((services.into_iter().map(ServiceId::from_stored).collect(), has_more))
}

/// How many of these services one answer can list.
fn fitting(services: &[String]) -> usize {
    let mut bytes = 0;
    let fits = |service_id: &&String| {
        bytes += service_id.len() + ITEM_BYTES;
        bytes <= SETTLED_BYTES_MAX
    };
    services.iter().take(SETTLED_MAX).take_while(fits).count()
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
    Ok(quotes)
}
