//! Outstanding usage of one service, as a sum and by agent.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::store::service_usage::{self, Order, Sums};

use super::page::Slice;
use super::reader::Reader;

pub async fn sums(
    reader: &Reader,
    tenant: &Tenant,
    service_id: &ServiceId,
    deadline: Instant,
) -> Result<Sums, Refusal> {
    let read = async |connection: &mut PgConnection| service_usage::sums(connection, tenant, service_id).await;
    reader.read(deadline, read).await
}

/// Agents with outstanding usage. Also their number, if the slice is a page. The list in order of appearance is
/// complete without `page`; the list by total is always limited.
pub async fn agents(
    reader: &Reader,
    tenant: &Tenant,
    service_id: &ServiceId,
    order: Order,
    slice: Slice,
    deadline: Instant,
) -> Result<(Vec<(AgentId, Count)>, i64), Refusal> {
    let limit = match order {
        Order::FirstSeen => slice.limit_if_paged(),
        Order::Total => slice.limit,
    };
    let read = async |connection: &mut PgConnection| {
        let agents = service_usage::agents(connection, tenant, service_id, order, limit, slice.offset()).await?;
        let count = match slice.page {
            Some(_) => service_usage::sums(connection, tenant, service_id).await?.agents,
            None => 0,
        };
        Ok((agents, count))
    };
    let (agents, count) = reader.read(deadline, read).await?;
    slice.check_length(agents.len())?;
    Ok((agents, count))
}
