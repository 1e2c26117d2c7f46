//! Registers a service, or sets the price of a registered one and, if sent, its metadata.

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::money::Price;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{Metadata, Registration, Service};
use crate::store::positions::{self, Numbered};
use crate::store::{services, totals};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RegisteredService")]
pub struct Registered<'a> {
    service_id: &'a ServiceId,
    price_stroops: Price,
    #[serde(flatten)]
    metadata: Option<&'a Metadata>,
}

/// 201 for a new service, 200 for an existing one.
pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    registration: &Registration,
) -> Result<Reply, Stop> {
    let Registration { service_id, price_stroops, metadata } = registration;
    let status = match services::lock(context.connection, tenant, service_id).await? {
        Some(before) => {
            let mut after = Service { price_stroops: *price_stroops, ..before.clone() };
            if let Some(metadata) = metadata {
                after.metadata = Some(metadata.clone());
            }
            super::store(context, tenant, Operation::ServiceUpdated, &before, &after).await?;
            200
        }
        None => {
            if totals::services(context.connection, tenant).await? >= context.limits.services_store_max_keys {
                return Err(Refusal::ServiceCapacity.into());
            }
            let service = Service {
                service_id: service_id.clone(),
                price_stroops: *price_stroops,
                disabled: false,
                metadata: metadata.clone(),
            };
            let position = positions::draw(context.connection, context.dialect, Numbered::Services, 1).await?[0];
            services::insert(context.connection, tenant, &service, position, context.now).await?;
            context.effects.counts_of(tenant).services += 1;
            context.changed_terms.push(tenant.clone());
            let change = Change::of(Operation::ServiceCreated, tenant, service_id.as_str());
            context.changes.push(change.to(service));
            201
        }
    };
    let registered = Registered { service_id, price_stroops: *price_stroops, metadata: metadata.as_ref() };
    Ok(Reply::json(status, &registered))
}
