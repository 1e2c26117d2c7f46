//! Disables or enables a service. Each call records an event, whether or not the service changes.

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::caller::Tenant;
use crate::domain::event::{Event, ServiceChange};
use crate::domain::names::ServiceId;
use crate::domain::service::Service;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceState<'a> {
    pub(super) service_id: &'a ServiceId,
    pub(super) disabled: bool,
}

pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    service_id: &ServiceId,
    enabled: bool,
) -> Result<Reply, Stop> {
    let disabled = !enabled;
    let before = super::registered(context, tenant, service_id).await?;
    let after = Service { disabled, ..before.clone() };
    super::store(context, tenant, super::set_disabled(disabled), &before, &after).await?;
    let change = ServiceChange { service_id: service_id.clone(), tenant_id: tenant.to_string() };
    let event = if disabled { Event::ServiceDisabled(change) } else { Event::ServiceEnabled(change) };
    context.effects.events.push((tenant.clone(), event));
    Ok(Reply::json(200, &ServiceState { service_id, disabled }))
}
