//! Reading all pairs of a tenant in steps, inside one snapshot that the caller holds.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;

use super::StoreError;

/// A pair, what is outstanding of it, and its place in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub pair: Pair,
    pub outstanding: i64,
    pub list_position: i64,
}

/// The next pairs behind `after`, in the order of their first record, at most `limit`. Positions begin at 1.
pub async fn pairs_after(
    connection: &mut PgConnection,
    tenant: &Tenant,
    after: i64,
    limit: i64,
) -> Result<Vec<Exported>, StoreError> {
    let rows = sqlx::query!(
        "-- exports::pairs_after
        SELECT agent, service_id, outstanding, list_position FROM usage_counters
        WHERE tenant = $1 AND list_position > $2
        ORDER BY tenant, list_position LIMIT $3",
        tenant.as_str(),
        after,
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
