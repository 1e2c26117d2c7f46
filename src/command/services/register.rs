//! Registers a service, or sets the price of a registered one and, if sent, its metadata.

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, Registration};
use crate::store::{services, totals};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RegisteredService")]
pub struct Registered<'a> {
    service_id: &'a ServiceId,
    price_stroops: i64,
    #[serde(flatten)]
    metadata: Option<&'a Metadata>,
}

/// 201 for a new service, 200 for an existing one.
pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    registration: &Registration,
) -> Result<Reply, Stop> {
    let status = if services::update(context.connection, tenant, registration).await? {
        200
    } else {
        if totals::services(context.connection, tenant).await? >= context.limits.services_store_max_keys {
            return Err(Refusal::ServiceCapacity.into());
        }
        services::insert(context.connection, tenant, registration, context.now).await?;
        context.effects.counts_of(tenant).services += 1;
        201
    };
    context.changed_terms.push(tenant.clone());
    Ok(Reply::json(
        status,
        &Registered {
            service_id: &registration.service_id,
            price_stroops: registration.price_stroops,
            metadata: registration.metadata.as_ref(),
        },
    ))
}
