//! The table `agents`, and the usage of agents. Commits insert into it in `commit::write`.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};

use super::StoreError;

/// Locks these agents in the order of their ids. They get no new pairs until the transaction ends.
pub async fn lock(connection: &mut PgConnection, agents: &[(&Tenant, &AgentId)]) -> Result<(), StoreError> {
    sqlx::query!(
        r#"-- agents::lock
        SELECT agent.is_locked AS "is_locked!"
        FROM (
            SELECT DISTINCT tenant_id, agent_id FROM unnest($1::text[], $2::text[]) AS named (tenant_id, agent_id)
            ORDER BY tenant_id, agent_id
        ) AS wanted
        CROSS JOIN LATERAL (
            SELECT true AS is_locked FROM agents
            WHERE agents.tenant_id = wanted.tenant_id AND agents.agent_id = wanted.agent_id
            LIMIT 1
            FOR UPDATE
        ) AS agent"#,
        agents.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        agents.iter().map(|(_, agent)| agent.as_str()).collect::<Vec<_>>() as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Agents with a pair, in the order in which they were first seen, without the first `offset`.
pub async fn list(
    connection: &mut PgConnection,
    tenant: &Tenant,
    limit: i64,
    offset: i64,
) -> Result<Vec<AgentId>, StoreError> {
    let agents = sqlx::query_scalar!(
        r#"-- agents::list
        SELECT agent_id FROM agents WHERE tenant_id COLLATE "POSIX" = $1
        ORDER BY tenant_id COLLATE "POSIX", list_position, agent_id LIMIT $2 OFFSET $3"#,
        tenant.as_str(),
        limit,
        offset,
    )
    .fetch_all(connection)
    .await?;
    Ok(agents.into_iter().map(AgentId::from_stored).collect())
}

/// The sum of outstanding requests over the pairs of an agent; 0 for an unknown agent.
pub async fn outstanding(connection: &mut PgConnection, tenant: &Tenant, agent: &AgentId) -> Result<Count, StoreError> {
    // The sum may exceed 64 bits. The value that is shown saturates.
    let total = sqlx::query_scalar!(
        r#"-- agents::outstanding
        SELECT least(coalesce(sum(outstanding), 0), 9007199254740991)::bigint AS "total!"
        FROM usage_counters WHERE tenant_id = $1 AND agent_id = $2"#,
        tenant.as_str(),
        agent.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(Count(total))
}

/// The pairs of an agent in the order of their first records, including those at zero, without the first `offset`.
pub async fn pairs(
    connection: &mut PgConnection,
    tenant: &Tenant,
    agent: &AgentId,
    limit: i64,
    offset: i64,
) -> Result<Vec<(ServiceId, Count)>, StoreError> {
    let pairs = sqlx::query!(
        "-- agents::pairs
        SELECT service_id, outstanding FROM usage_counters WHERE tenant_id = $1 AND agent_id = $2
        ORDER BY pair_id, service_id LIMIT $3 OFFSET $4",
        tenant.as_str(),
        agent.as_str(),
        limit,
        offset,
    )
    .fetch_all(connection)
    .await?;
    Ok(pairs.into_iter().map(|row| (ServiceId::from_stored(row.service_id), Count(row.outstanding))).collect())
}

/// The number of an agent's pairs.
pub async fn count_pairs(connection: &mut PgConnection, tenant: &Tenant, agent: &AgentId) -> Result<i64, StoreError> {
    let pairs = sqlx::query_scalar!(
        r#"-- agents::count_pairs
        SELECT count(*) AS "pairs!" FROM usage_counters WHERE tenant_id = $1 AND agent_id = $2"#,
        tenant.as_str(),
        agent.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(pairs)
}
