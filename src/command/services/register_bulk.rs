//! Registers many services, or sets their prices, in five statements for any number of items.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::service::PricedService;
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
    price_stroops: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// The result of one item.
#[derive(Clone, Copy)]
enum Fate {
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
    let found: HashSet<ServiceId> = services::registered(context.connection, tenant, &ids).await?.into_iter().collect();
    let count = totals::services(context.connection, tenant).await?;
    let fates = decide(items, &found, context.limits.services_store_max_keys - count);

    let chosen = |wanted: fn(&Fate) -> bool| {
        let items = items.iter().zip(&fates).filter(move |(_, fate)| wanted(fate));
        items.filter_map(|(item, _)| item.as_ref()).collect::<Vec<&PricedService>>()
    };
    let created = chosen(|fate| matches!(fate, Fate::Created));
    let mut updated = chosen(|fate| matches!(fate, Fate::Updated));
    if !updated.is_empty() {
        updated.sort_unstable_by_key(|item| &item.service_id);
        services::set_prices(context.connection, tenant, &updated).await?;
    }
    if !created.is_empty() {
        services::insert_all(context.connection, tenant, &created, context.now).await?;
        context.effects.counts_of(tenant).services += created.len() as i64;
    }
    context.changed_terms.push(tenant.clone());
    Ok(Reply::json(201, &Results { results: report(items, &fates) }))
}

/// `capacity_left` is the number of new services that the tenant may add.
fn decide(items: &[Option<PricedService>], found: &HashSet<ServiceId>, mut capacity_left: i64) -> Vec<Fate> {
    let mut seen = HashSet::new();
    let mut fates = Vec::with_capacity(items.len());
    for item in items {
        fates.push(match item {
            None => Fate::Invalid,
            Some(item) if !seen.insert(&item.service_id) => Fate::Duplicate,
            Some(item) if found.contains(&item.service_id) => Fate::Updated,
            Some(_) if capacity_left <= 0 => Fate::OverCapacity,
            Some(_) => {
                capacity_left -= 1;
                Fate::Created
            }
        });
    }
    fates
}

fn report<'a>(items: &'a [Option<PricedService>], fates: &[Fate]) -> Vec<ItemResult<'a>> {
    let results = items.iter().zip(fates).enumerate();
    results.map(|(index, (item, fate))| ItemResult::of(index, item.as_ref(), *fate)).collect()
}

impl<'a> ItemResult<'a> {
    fn of(index: usize, item: Option<&'a PricedService>, fate: Fate) -> Self {
        let (created, error) = match fate {
            Fate::Created => (Some(true), None),
            Fate::Updated => (Some(false), None),
            Fate::Invalid => (None, Some("invalid_item")),
            Fate::Duplicate => (None, Some("duplicate_in_batch")),
            Fate::OverCapacity => (None, Some("store_capacity_exceeded")),
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
