//! Changes a registered service: its price, its metadata, or whether it is disabled. None of these records an event.

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::command::services::set_enabled::ServiceState;
use crate::domain::caller::Tenant;
use crate::domain::money::PRICE_MAX;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, ServiceEdit};
use crate::store::services;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePrice<'a> {
    service_id: &'a ServiceId,
    #[schemars(range(min = 0, max = PRICE_MAX))]
    price_stroops: i64,
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
    let exists = match edit {
        Ok(ServiceEdit::Price(price)) => services::set_price(context.connection, tenant, service_id, *price).await?,
        Ok(ServiceEdit::Metadata(metadata)) => {
            services::set_metadata(context.connection, tenant, service_id, metadata).await?
        }
        Ok(ServiceEdit::Disabled(disabled)) => {
            services::set_disabled(context.connection, tenant, service_id, *disabled).await?
        }
        Err(_) => services::find(context.connection, tenant, service_id).await?.is_some(),
    };
    if !exists {
        return Err(Refusal::ServiceNotRegistered(service_id.clone()).into());
    }
    let edit = edit.as_ref().map_err(Refusal::clone)?;
    context.changed_terms.push(tenant.clone());
    Ok(match edit {
        ServiceEdit::Price(price) => Reply::json(200, &ServicePrice { service_id, price_stroops: *price }),
        ServiceEdit::Metadata(metadata) => Reply::json(200, &ServiceMetadata { service_id, metadata }),
        ServiceEdit::Disabled(disabled) => Reply::json(200, &ServiceState { service_id, disabled: *disabled }),
    })
}
