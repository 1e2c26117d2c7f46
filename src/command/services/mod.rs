//! Commands that register, change and delete services.

pub mod change;
pub mod delete;
pub mod register;
pub mod register_bulk;
pub mod set_enabled;

use crate::command::context::{Stop, TransactionContext};
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::Service;
use crate::store::services;

/// The service, which nobody else changes until the transaction ends.
async fn registered(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    service_id: &ServiceId,
) -> Result<Service, Stop> {
    let service = services::lock(context.connection, tenant, service_id).await?;
    service.ok_or_else(|| Refusal::ServiceNotRegistered(service_id.clone()).into())
}

/// Stores the service `before` as `after`.
async fn store(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    operation: Operation,
    before: &Service,
    after: &Service,
) -> Result<(), Stop> {
    if before != after {
        services::update(context.connection, tenant, after).await?;
        context.changes.push(Change::of(operation, tenant, after.service_id.as_str()).from(before).to(after));
    }
    context.changed_terms.push(tenant.clone());
    Ok(())
}

/// The operation that sets the flag of a service.
fn set_disabled(disabled: bool) -> Operation {
    if disabled { Operation::ServiceDisabled } else { Operation::ServiceEnabled }
}
