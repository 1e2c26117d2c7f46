//! Deletes a service with its metadata and its flag. The pairs that used it stay, and settle at price 0.

use crate::domain::event::Event;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::store::{StoreError, services, tenants};

use super::Request;
use super::reply::Reply;
use super::work::{Outcome, Work};

pub async fn apply(work: &mut Work<'_>, request: &Request, service_id: &ServiceId) -> Result<Outcome, StoreError> {
    let tenant = &request.tenant;
    // Under this lock nobody else makes or deletes services of the tenant, so a bulk registration can trust what it saw.
    tenants::lock(work.connection, tenant).await?;
    if !services::delete(work.connection, tenant, service_id).await? {
        return Ok(Err(Refusal::ServiceNotRegistered(service_id.clone())));
    }
    work.totals_of(tenant).services -= 1;
    work.events.push((tenant.clone(), Event::ServiceDeleted { service_id: service_id.clone() }));
    Ok(Ok(Reply::no_content()))
}
