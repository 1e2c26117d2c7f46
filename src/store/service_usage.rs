//! Outstanding usage of one service: maintained sums, and its pairs above zero, whose number is capped.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};

use super::StoreError;

/// The sums over a service's pairs above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    pub outstanding: Count,
    pub agents: i64,
}

/// Zeros for a service without usage.
pub async fn sums(connection: &mut PgConnection, tenant: &Tenant, service_id: &ServiceId) -> Result<Sums, StoreError> {
    // The sum may exceed 64 bits. The value that is shown saturates.
    let row = sqlx::query!(
        r#"-- service_usage::sums
        SELECT least(coalesce(sum(outstanding), 0), 9007199254740991)::bigint AS "outstanding!",
               coalesce(sum(pairs_above_zero), 0)::bigint AS "agents!"
        FROM totals WHERE tenant_id = $1 AND service_id = $2"#,
        tenant.as_str(),
        service_id.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(Sums { outstanding: Count(row.outstanding), agents: row.agents })
}

/// The order of a list of agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    FirstSeen,
    /// Highest total first, then by name.
    Total,
}

/// At most `limit` agents with outstanding usage, without the first `offset`.
pub async fn agents(
    connection: &mut PgConnection,
    tenant: &Tenant,
    service_id: &ServiceId,
    order: Order,
    limit: i64,
    offset: i64,
) -> Result<Vec<(AgentId, Count)>, StoreError> {
    macro_rules! rows {
        ($name:literal, $order:literal) => {
            sqlx::query_as!(
                Row,
                "-- service_usage::agents, "
                    + $name
                    + "\n"
                    + "SELECT agent_id, outstanding FROM usage_counters
                       WHERE tenant_id COLLATE \"POSIX\" = $1 AND service_id COLLATE \"POSIX\" = $2 AND outstanding > 0 ORDER BY "
                    + $order + " LIMIT $3 OFFSET $4",
                tenant.as_str(),
                service_id.as_str(),
                limit,
                offset
            )
            .fetch_all(connection)
            .await?
        };
    }
    let rows = match order {
        Order::FirstSeen => rows!("first seen", "pair_id, agent_id"),
        Order::Total => rows!("total", "outstanding DESC, agent_id"),
    };
    Ok(rows.into_iter().map(|row| (AgentId::from_stored(row.agent_id), Count(row.outstanding))).collect())
}

struct Row {
    agent_id: String,
    outstanding: i64,
}
