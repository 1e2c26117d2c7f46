//! Settles, set-wise: locks every pair it bills, bills each at the current price, and drains them all at once.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::money::{Count, Stroops};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::settlement::Settlement;
use crate::domain::usage::Pair;
use crate::store::usage::CounterId;
use crate::store::{StoreError, services, usage};

use super::reply::Reply;
use super::work::{Numbered, Outcome, Work};
use super::{Command, Request};

/// The 200 of POST settle.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Settled<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    requests: Count,
    price_stroops: i64,
    billed_stroops: Stroops,
}

/// The 200 of POST settle/bulk.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentSettled<'a> {
    agent: &'a AgentId,
    items: Vec<SettledItem<'a>>,
    total_billed_stroops: Stroops,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SettledItem<'a> {
    service_id: &'a ServiceId,
    requests: Count,
    price_stroops: i64,
    billed_stroops: Stroops,
}

/// The pairs each settling request bills, in the order its answer lists them.
pub type Bills = BTreeMap<usize, Vec<CounterId>>;

/// Finds the pairs that `requests` bill.
pub async fn find_pairs(work: &mut Work<'_>, requests: &[Numbered<'_>]) -> Result<Bills, StoreError> {
    let mut bills = Bills::new();
    for (place, request) in requests {
        let tenant = &request.tenant;
        let ids = match &request.command {
            Command::Settle(pair) => vec![CounterId { tenant: tenant.clone(), pair: pair.clone() }],
            Command::SettleAgent(agent) => usage::services_of_agent(work.connection, tenant, agent.as_str())
                .await?
                .into_iter()
                .map(|service_id| CounterId { tenant: tenant.clone(), pair: Pair { agent: agent.clone(), service_id } })
                .collect(),
            _ => continue,
        };
        bills.insert(*place, ids);
    }
    Ok(bills)
}

/// Locks all pairs the batch will touch, in sorted order: whoever else wants several of them waits instead of deadlocking.
pub async fn lock(
    work: &mut Work<'_>,
    bills: &Bills,
    others: impl Iterator<Item = CounterId>,
) -> Result<(), StoreError> {
    let ids: BTreeSet<CounterId> = bills.values().flatten().cloned().chain(others).collect();
    let list: Vec<&CounterId> = ids.iter().collect();
    let outstanding = usage::lock(work.connection, &list).await?;
    // A pair never seen is held at zero: usage of this same batch may bring it above.
    work.held = ids.into_iter().zip(outstanding).map(|(id, outstanding)| (id, outstanding.unwrap_or(0))).collect();
    Ok(())
}

/// Settles `requests` in their order, and puts each request's outcome in its place.
pub async fn apply(
    work: &mut Work<'_>,
    requests: &[Numbered<'_>],
    bills: &Bills,
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let prices = load_prices(work, bills).await?;
    let mut drained = BTreeMap::new();
    for (place, request) in requests {
        let Some(ids) = bills.get(place) else { continue };
        let mut items = Vec::with_capacity(ids.len());
        for id in ids {
            let price_stroops = prices.get(&(&id.tenant, &id.pair.service_id)).copied().unwrap_or(0);
            items.push(bill(work, request, id, price_stroops, &mut drained));
        }
        outcomes[*place] = Some(Ok(reply(request, items)));
    }
    if !drained.is_empty() {
        let list: Vec<(&CounterId, i64)> = drained.iter().map(|(id, requests)| (*id, *requests)).collect();
        usage::drain(work.connection, &list).await?;
    }
    Ok(())
}

type Prices<'a> = BTreeMap<(&'a Tenant, &'a ServiceId), i64>;

/// Current prices; a service that is not registered has none.
async fn load_prices<'a>(work: &mut Work<'_>, bills: &'a Bills) -> Result<Prices<'a>, StoreError> {
    let offers: BTreeSet<(&Tenant, &ServiceId)> =
        bills.values().flatten().map(|id| (&id.tenant, &id.pair.service_id)).collect();
    let offers: Vec<_> = offers.into_iter().collect();
    let terms = services::terms(work.connection, &offers).await?;
    Ok(offers.into_iter().zip(terms).filter_map(|(offer, terms)| Some((offer, terms?.price_stroops))).collect())
}

/// Bills what is due of one pair now. Nothing due is a bill of nothing: told, but not kept in the ledger.
fn bill<'a>(
    work: &mut Work<'_>,
    request: &Request,
    id: &'a CounterId,
    price_stroops: i64,
    drained: &mut BTreeMap<&'a CounterId, i64>,
) -> SettledItem<'a> {
    let held = work.held.get_mut(id).expect("every billed pair was locked");
    let requests = std::mem::take(held);
    let billed_stroops = Stroops::bill(requests, price_stroops);
    let is_bulk = matches!(request.command, Command::SettleAgent(_));
    if requests > 0 {
        drained.insert(id, requests);
        let settlement = Settlement {
            id: identifiers::draw(work.dice, "stl_", 16),
            agent: id.pair.agent.clone(),
            service_id: id.pair.service_id.clone(),
            requests: Count(requests),
            price_stroops,
            billed_stroops,
            settled_at: work.now,
            idempotency_key: request.keyed.as_ref().map(|keyed| keyed.id.key.clone()),
            request_id: request.request_id.clone(),
        };
        work.settlements.push((id.tenant.clone(), settlement));
        let totals = work.totals_of(&id.tenant);
        totals.outstanding -= requests;
        totals.pairs_above_zero -= 1;
        totals.settled_stroops += billed_stroops;
    }
    if requests > 0 || !is_bulk {
        work.totals_of(&id.tenant).settlements += 1;
        let event = Event::UsageSettled {
            agent: id.pair.agent.clone(),
            service_id: id.pair.service_id.clone(),
            requests: Count(requests),
            billed_stroops,
            bulk: is_bulk,
        };
        work.events.push((id.tenant.clone(), event));
    }
    SettledItem { service_id: &id.pair.service_id, requests: Count(requests), price_stroops, billed_stroops }
}

fn reply(request: &Request, mut items: Vec<SettledItem<'_>>) -> Reply {
    match &request.command {
        Command::SettleAgent(agent) => {
            let mut total_billed_stroops = Stroops::default();
            for item in &items {
                total_billed_stroops += item.billed_stroops;
            }
            Reply::json(200, &AgentSettled { agent, items, total_billed_stroops })
        }
        Command::Settle(pair) => {
            let item = items.pop().expect("a single settlement has one item");
            Reply::json(
                200,
                &Settled {
                    agent: &pair.agent,
                    service_id: &pair.service_id,
                    requests: item.requests,
                    price_stroops: item.price_stroops,
                    billed_stroops: item.billed_stroops,
                },
            )
        }
        _ => unreachable!("only settlements are billed"),
    }
}
