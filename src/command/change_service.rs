//! Changes a registered service: its price, its metadata, or whether it is disabled. None of these is an event.

use serde::Serialize;

use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, ServiceEdit};
use crate::store::{StoreError, services};

use super::Request;
use super::reply::Reply;
use super::work::{Outcome, Work};

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
    work: &mut Work<'_>,
    request: &Request,
    service_id: &ServiceId,
    edit: &Result<ServiceEdit, Refusal>,
) -> Result<Outcome, StoreError> {
    let tenant = &request.tenant;
    let exists = match edit {
        Ok(ServiceEdit::Price(price)) => services::set_price(work.connection, tenant, service_id, *price).await?,
        Ok(ServiceEdit::Metadata(metadata)) => {
            services::set_metadata(work.connection, tenant, service_id, metadata).await?
        }
        Ok(ServiceEdit::Disabled(disabled)) => {
            services::set_disabled(work.connection, tenant, service_id, *disabled).await?
        }
        Err(_) => services::find(work.connection, tenant, service_id).await?.is_some(),
    };
    if !exists {
        return Ok(Err(Refusal::ServiceNotRegistered(service_id.clone())));
    }
    Ok(edit.as_ref().map(|edit| Reply::json(200, &Changed::of(service_id, edit))).map_err(Refusal::clone))
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
