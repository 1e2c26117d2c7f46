//! The agents of a tenant, and their outstanding usage.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::store::{agents, totals};

use super::page::Slice;
use super::reader::Reader;

/// Agents in the order in which they were first seen. Also their number, if the slice is a page.
pub async fn list(
    reader: &Reader,
    tenant: &Tenant,
    slice: Slice,
    deadline: Instant,
) -> Result<(Vec<AgentId>, i64), Refusal> {
    let read = async |connection: &mut PgConnection| {
        let agents = agents::list(connection, tenant, slice.limit, slice.offset()).await?;
        let count = if slice.page.is_some() {
            totals::of_each(connection, &[tenant.as_str()]).await?.pop().unwrap_or_default().agents
        } else {
            0
        };
        Ok((agents, count))
    };
    reader.read(deadline, read).await
}

/// The outstanding total of `agent`.
pub async fn outstanding(
    reader: &Reader,
    tenant: &Tenant,
    agent: &AgentId,
    deadline: Instant,
) -> Result<Count, Refusal> {
    let read = async |connection: &mut PgConnection| agents::outstanding(connection, tenant, agent).await;
    reader.read(deadline, read).await
}

/// Outstanding usage of `agent` by service. Also the number of services, if the slice is a page.
pub async fn pairs(
    reader: &Reader,
    tenant: &Tenant,
    agent: &AgentId,
    slice: Slice,
    deadline: Instant,
) -> Result<(Vec<(ServiceId, Count)>, i64), Refusal> {
    let read = async |connection: &mut PgConnection| {
        let pairs = agents::pairs(connection, tenant, agent, slice.limit_if_paged(), slice.offset()).await?;
        let count = if slice.page.is_some() { agents::count_pairs(connection, tenant, agent).await? } else { 0 };
        Ok((pairs, count))
    };
    let (pairs, count) = reader.read(deadline, read).await?;
    slice.check_length(pairs.len())?;
    Ok((pairs, count))
}
