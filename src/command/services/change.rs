//! Changes a registered service: its price, its metadata, or whether it is disabled. None of these is an event.

use serde::Serialize;

use crate::command::Reply;
use crate::command::context::{Stop, TransactionContext};
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, ServiceEdit};
use crate::store::services;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed<'a> {
    service_id: &'a ServiceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    price_stroops: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled: Option<bool>,
    #[serde(flatten)]
    metadata: Option<&'a Metadata>,
}

/// `edit` is what the body asked for, or why it asked for nothing valid: that counts only if the service exists.
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
    Ok(Reply::json(200, &Changed::of(service_id, edit)))
}

impl<'a> Changed<'a> {
    fn of(service_id: &'a ServiceId, edit: &'a ServiceEdit) -> Self {
        let nothing = Self { service_id, price_stroops: None, disabled: None, metadata: None };
        match edit {
            ServiceEdit::Price(price) => Self { price_stroops: Some(*price), ..nothing },
            ServiceEdit::Metadata(metadata) => Self { metadata: Some(metadata), ..nothing },
            ServiceEdit::Disabled(disabled) => Self { disabled: Some(*disabled), ..nothing },
        }
    }
}
