//! Deletes a service. Pairs that used it stay, and settle at a price of 0.

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::store::services;

pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    service_id: &ServiceId,
) -> Result<Reply, Stop> {
    if !services::delete(context.connection, tenant, service_id).await? {
        return Err(Refusal::ServiceNotRegistered(service_id.clone()).into());
    }
    context.effects.counts_of(tenant).services -= 1;
    context.effects.events.push((tenant.clone(), Event::ServiceDeleted { service_id: service_id.clone() }));
    context.changed_terms.push(tenant.clone());
    Ok(Reply::no_content())
}
