//! Disables or enables a service. Each time is an event, whether it changes anything or not.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::event::{Event, ServiceChange};
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::store::{StoreError, services};

use super::Request;
use super::reply::Reply;
use super::work::{Outcome, Work};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "SwitchedService")]
pub struct Switched<'a> {
    service_id: &'a ServiceId,
    disabled: bool,
}

pub async fn apply(
    work: &mut Work<'_>,
    request: &Request,
    service_id: &ServiceId,
    disabled: bool,
) -> Result<Outcome, StoreError> {
    if !services::set_disabled(work.connection, &request.tenant, service_id, disabled).await? {
        return Ok(Err(Refusal::ServiceNotRegistered(service_id.clone())));
    }
    let change = ServiceChange { service_id: service_id.clone(), tenant_id: request.tenant.to_string() };
    let event = if disabled { Event::ServiceDisabled(change) } else { Event::ServiceEnabled(change) };
    work.events.push((request.tenant.clone(), event));
    Ok(Ok(Reply::json(200, &Switched { service_id, disabled })))
}
