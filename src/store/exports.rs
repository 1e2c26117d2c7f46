//! Reading all pairs of a tenant in steps, inside one snapshot that the caller holds.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;

use super::StoreError;

/// Where a step of an export ended. A position alone may repeat: after a logical copy its sequence may begin again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    list_position: i64,
    agent: String,
    service_id: String,
}

impl Place {
    /// Before the first pair.
    pub fn start() -> Self {
        Self { list_position: i64::MIN, agent: String::new(), service_id: String::new() }
    }

    pub fn of(exported: &Exported) -> Self {
        let Exported { pair, list_position, .. } = exported;
        let (agent, service_id) = (pair.agent.as_str().to_owned(), pair.service_id.as_str().to_owned());
        Self { list_position: *list_position, agent, service_id }
    }
}

/// A pair, what is outstanding of it, and its position in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub pair: Pair,
    pub outstanding: i64,
    pub list_position: i64,
}

/// The next pairs behind `after`, in the order of their first record, at most `limit`.
pub async fn pairs_after(
    connection: &mut PgConnection,
    tenant: &Tenant,
    after: &Place,
    limit: i64,
) -> Result<Vec<Exported>, StoreError> {
    let rows = sqlx::query!(
        "-- exports::pairs_after
        SELECT agent, service_id, outstanding, list_position FROM usage_counters
        WHERE tenant = $1 AND list_position >= $2 AND (list_position, agent, service_id) > ($2, $3, $4)
        ORDER BY tenant, list_position, agent, service_id LIMIT $5",
        tenant.as_str(),
        after.list_position,
        after.agent,
        after.service_id,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let exported = rows.into_iter().map(|row| Exported {
        pair: Pair { agent: AgentId::from_stored(row.agent), service_id: ServiceId::from_stored(row.service_id) },
        outstanding: row.outstanding,
        list_position: row.list_position,
    });
    Ok(exported.collect())
}
