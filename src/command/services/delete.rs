//! Deletes a service. Pairs that used it stay, and settle at a price of 0.

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::names::ServiceId;
use crate::store::services;

pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    service_id: &ServiceId,
) -> Result<Reply, Stop> {
    let before = super::registered(context, tenant, service_id).await?;
    services::delete(context.connection, tenant, service_id).await?;
    context.changes.push(Change::of(Operation::ServiceDeleted, tenant, service_id.as_str()).from(before));
    context.effects.counts_of(tenant).services -= 1;
    context.effects.events.push((tenant.clone(), Event::ServiceDeleted { service_id: service_id.clone() }));
    context.changed_terms.push(tenant.clone());
    Ok(Reply::no_content())
}
