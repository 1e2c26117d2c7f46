//! Changes a registered service: its price, its metadata, or whether it is disabled. None of these records an event.

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::command::services::set_enabled::ServiceState;
use crate::domain::audit_log::Operation;
use crate::domain::caller::Tenant;
use crate::domain::money::Price;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, ServiceEdit};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePrice<'a> {
    service_id: &'a ServiceId,
    price_stroops: Price,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceMetadata<'a> {
    pub service_id: &'a ServiceId,
    #[serde(flatten)]
    pub metadata: &'a Metadata,
}

/// `edit` is the change, or why it is invalid. An invalid edit is reported only if the service exists.
pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    service_id: &ServiceId,
    edit: &Result<ServiceEdit, Refusal>,
) -> Result<Reply, Stop> {
    let before = super::registered(context, tenant, service_id).await?;
    let mut after = before.clone();
    let (operation, reply) = match edit.as_ref().map_err(Refusal::clone)? {
        ServiceEdit::Price(price) => {
            after.price_stroops = *price;
            let reply = Reply::json(200, &ServicePrice { service_id, price_stroops: *price });
            (Operation::ServiceUpdated, reply)
        }
        ServiceEdit::Metadata(metadata) => {
            after.metadata = Some(metadata.clone());
            (Operation::ServiceUpdated, Reply::json(200, &ServiceMetadata { service_id, metadata }))
        }
        ServiceEdit::Disabled(disabled) => {
            after.disabled = *disabled;
            let reply = Reply::json(200, &ServiceState { service_id, disabled: *disabled });
            (super::set_disabled(*disabled), reply)
        }
    };
    super::store(context, tenant, operation, &before, &after).await?;
    Ok(reply)
}
