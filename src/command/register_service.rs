//! Registers a service, or gives a registered one a new price and, if sent, new metadata.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, Registration};
use crate::store::{StoreError, services, tenants, totals};

use super::Request;
use super::reply::Reply;
use super::work::{Outcome, Work};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RegisteredService")]
pub struct Registered<'a> {
    service_id: &'a ServiceId,
    price_stroops: i64,
    #[serde(flatten)]
    metadata: Option<&'a Metadata>,
}

/// 201 for a new service, 200 for one that was there.
pub async fn apply(work: &mut Work<'_>, request: &Request, registration: &Registration) -> Result<Outcome, StoreError> {
    let tenant = &request.tenant;
    let status = if services::update(work.connection, tenant, registration).await? {
        200
    } else {
        // The lock makes the count exact: whoever else registers for this tenant waits.
        tenants::lock(work.connection, tenant).await?;
        let count = totals::services(work.connection, tenant).await? + work.totals_of(tenant).services;
        if count >= work.limits.services_store_max_keys {
            return Ok(Err(Refusal::ServiceCapacity));
        }
        services::insert(work.connection, tenant, registration, work.now).await?;
        work.totals_of(tenant).services += 1;
        201
    };
    Ok(Ok(Reply::json(
        status,
        &Registered {
            service_id: &registration.service_id,
            price_stroops: registration.price_stroops,
            metadata: registration.metadata.as_ref(),
        },
    )))
}
