//! Reads all pairs of a tenant in steps, within one snapshot of the caller.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;

use super::StoreError;

/// The last pair of a step. Positions alone may repeat: after a logical copy the sequence may restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportCursor {
    pair_id: i64,
    agent: String,
    service_id: String,
}

impl ExportCursor {
    /// Before the first pair.
    pub fn start() -> Self {
        Self { pair_id: i64::MIN, agent: String::new(), service_id: String::new() }
    }

    pub fn of(exported: &Exported) -> Self {
        let Exported { pair, pair_id, .. } = exported;
        let (agent, service_id) = (pair.agent.as_str().to_owned(), pair.service_id.as_str().to_owned());
        Self { pair_id: *pair_id, agent, service_id }
    }
}

/// A pair, its outstanding requests, and its position in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub pair: Pair,
    pub outstanding: i64,
    pub pair_id: i64,
}

/// At most `limit` pairs after `after`, in the order of their first record.
pub async fn pairs_after(
    connection: &mut PgConnection,
    tenant: &Tenant,
    after: &ExportCursor,
    limit: i64,
) -> Result<Vec<Exported>, StoreError> {
    let rows = sqlx::query!(
        r#"-- exports::pairs_after
        SELECT agent_id, service_id, outstanding, pair_id FROM usage_counters
        WHERE tenant_id COLLATE "POSIX" = $1 AND pair_id >= $2 AND (pair_id, agent_id, service_id) > ($2, $3, $4)
        ORDER BY tenant_id COLLATE "POSIX", pair_id, agent_id, service_id LIMIT $5"#,
        tenant.as_str(),
        after.pair_id,
        after.agent,
        after.service_id,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let exported = rows.into_iter().map(|row| Exported {
        pair: Pair { agent: AgentId::from_stored(row.agent_id), service_id: ServiceId::from_stored(row.service_id) },
        outstanding: row.outstanding,
        pair_id: row.pair_id,
    });
    Ok(exported.collect())
}
