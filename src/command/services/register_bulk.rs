//! Registers many services, or sets their prices, in six statements for any number of items.

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::money::Price;
use crate::domain::names::ServiceId;
use crate::domain::service::{PricedService, Service};
use crate::store::positions::{self, Numbered};
use crate::store::{services, totals};

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "RegisteredServices")]
pub struct Results<'a> {
    results: Vec<ItemResult<'a>>,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RegisteredServicesItem")]
struct ItemResult<'a> {
    index: usize,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_id: Option<&'a ServiceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price_stroops: Option<Price>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// The result of one item.
#[derive(Clone, Copy)]
enum ItemOutcome {
    Invalid,
    Duplicate,
    OverCapacity,
    Created,
    Updated,
}

/// The first item of an id counts. The cap on services is applied item by item.
pub async fn apply(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    items: &[Option<PricedService>],
) -> Result<Reply, Stop> {
    let ids: Vec<&ServiceId> = items.iter().flatten().map(|item| &item.service_id).collect();
    let found = services::find_all(context.connection, tenant, &ids).await?;
    let found: HashMap<ServiceId, Service> =
        found.into_iter().map(|service| (service.service_id.clone(), service)).collect();
    let count = totals::services(context.connection, tenant).await?;
    let outcomes = decide(items, &found, context.limits.services_store_max_keys - count);

    let chosen = |wanted: fn(&ItemOutcome) -> bool| {
        let items = items.iter().zip(&outcomes).filter(move |(_, outcome)| wanted(outcome));
        items.filter_map(|(item, _)| item.as_ref()).collect::<Vec<&PricedService>>()
    };
    let created = chosen(|outcome| matches!(outcome, ItemOutcome::Created));
    let mut updated = chosen(|outcome| matches!(outcome, ItemOutcome::Updated));
    for item in &created {
        let change = Change::of(Operation::ServiceCreated, tenant, item.service_id.as_str());
        context.changes.push(change.to(item.to_service()));
    }
    for item in &updated {
        let before = &found[&item.service_id];
        if before.price_stroops != item.price_stroops {
            let after = Service { price_stroops: item.price_stroops, ..before.clone() };
            let change = Change::of(Operation::ServiceUpdated, tenant, item.service_id.as_str());
            context.changes.push(change.from(before).to(after));
        }
    }
    if !updated.is_empty() {
        updated.sort_unstable_by_key(|item| &item.service_id);
        services::set_prices(context.connection, tenant, &updated).await?;
    }
    if !created.is_empty() {
        let positions = positions::draw(context.connection, context.dialect, Numbered::Services, created.len()).await?;
        services::insert_all(context.connection, tenant, &created, &positions, context.now).await?;
        context.effects.counts_of(tenant).services += created.len() as i64;
    }
    context.changed_terms.push(tenant.clone());
    Ok(Reply::json(201, &Results { results: report(items, &outcomes) }))
}

/// `capacity_left` is the number of new services that the tenant may add.
fn decide(
    items: &[Option<PricedService>],
    found: &HashMap<ServiceId, Service>,
    mut capacity_left: i64,
) -> Vec<ItemOutcome> {
    let mut seen = HashSet::new();
    let mut outcomes = Vec::with_capacity(items.len());
    for item in items {
        outcomes.push(match item {
            None => ItemOutcome::Invalid,
            Some(item) if !seen.insert(&item.service_id) => ItemOutcome::Duplicate,
            Some(item) if found.contains_key(&item.service_id) => ItemOutcome::Updated,
            Some(_) if capacity_left <= 0 => ItemOutcome::OverCapacity,
            Some(_) => {
                capacity_left -= 1;
                ItemOutcome::Created
            }
        });
    }
    outcomes
}

fn report<'a>(items: &'a [Option<PricedService>], outcomes: &[ItemOutcome]) -> Vec<ItemResult<'a>> {
    let results = items.iter().zip(outcomes).enumerate();
    results.map(|(index, (item, outcome))| ItemResult::of(index, item.as_ref(), *outcome)).collect()
}

impl<'a> ItemResult<'a> {
    fn of(index: usize, item: Option<&'a PricedService>, outcome: ItemOutcome) -> Self {
        let (created, error) = match outcome {
            ItemOutcome::Created => (Some(true), None),
            ItemOutcome::Updated => (Some(false), None),
            ItemOutcome::Invalid => (None, Some("invalid_item")),
            ItemOutcome::Duplicate => (None, Some("duplicate_in_batch")),
            ItemOutcome::OverCapacity => (None, Some("store_capacity_exceeded")),
        };
        Self {
            index,
            ok: error.is_none(),
            service_id: item.map(|item| &item.service_id),
            price_stroops: item.filter(|_| error.is_none()).map(|item| item.price_stroops),
            created,
            error,
        }
    }
}
