//! Records usage, set-wise: whatever the batch adds to a pair is added once, and each record's running total is
//! computed from what the database returns.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::{Pair, UsageRecord};
use crate::store::usage::{Addition, CounterId};
use crate::store::{StoreError, services, totals, usage};

use super::reply::Reply;
use super::work::{Numbered, Outcome, Work};
use super::{Command, Request};

/// The 201 of POST usage.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Recorded<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    total: Count,
}

/// The 201 of POST usage/bulk.
#[derive(Serialize)]
struct BulkRecorded {
    results: Vec<ItemResult>,
}

#[derive(Serialize)]
struct ItemResult {
    index: usize,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// The pairs that these requests may change.
pub fn counters(requests: &[Numbered<'_>]) -> impl Iterator<Item = CounterId> {
    requests
        .iter()
        .flat_map(|(_, request)| records_of(request).flatten().map(|record| counter_id(&request.tenant, &record.pair)))
}

/// Applies all records of `requests` in their order, and puts each request's outcome in its place.
pub async fn apply(
    work: &mut Work<'_>,
    requests: &[Numbered<'_>],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), StoreError> {
    let admission = Admission::load(work, requests).await?;
    let (verdicts, added) = admission.decide(requests);
    let mut running = add(work, added).await?;
    let mut verdicts = verdicts.into_iter();
    for (place, request) in requests {
        let is_bulk = matches!(request.command, Command::RecordUsageBulk(_));
        let mut totals = Vec::new();
        for record in records_of(request) {
            let verdict = verdicts.next().expect("one verdict for each record");
            let total = match (record, verdict) {
                (Some(record), Ok(())) => Ok(settle_total(work, &mut running, request, record, is_bulk)),
                (_, Err(rejection)) => Err(rejection),
                (None, Ok(())) => Err(Rejection::InvalidItem),
            };
            totals.push(total);
        }
        outcomes[*place] = Some(if is_bulk { bulk_outcome(totals) } else { single_outcome(request, totals) });
    }
    Ok(())
}

/// Why a record is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    InvalidItem,
    Disabled,
    Capacity,
}

impl Rejection {
    fn item_code(self) -> &'static str {
        match self {
            Self::InvalidItem => "invalid_item",
            Self::Disabled => "service_disabled",
            Self::Capacity => "store_capacity_exceeded",
        }
    }
}

type Verdict = Result<(), Rejection>;

/// What decides whether a record is accepted.
struct Admission {
    disabled: BTreeSet<(Tenant, ServiceId)>,
    /// How many more pairs each tenant may bring above zero.
    room: BTreeMap<Tenant, i64>,
    /// Pairs above zero, known only for tenants that could run out of room in this batch.
    above_zero: BTreeSet<CounterId>,
}

impl Admission {
    async fn load(work: &mut Work<'_>, requests: &[Numbered<'_>]) -> Result<Self, StoreError> {
        let ids: BTreeSet<CounterId> = counters(requests).collect();
        let offers: BTreeSet<(&Tenant, &ServiceId)> = ids.iter().map(|id| (&id.tenant, &id.pair.service_id)).collect();
        let offers: Vec<_> = offers.into_iter().collect();
        let terms = services::terms(work.connection, &offers).await?;
        let disabled = offers
            .iter()
            .zip(terms)
            .filter(|(_, terms)| terms.is_some_and(|terms| terms.disabled))
            .map(|((tenant, service_id), _)| ((*tenant).clone(), (*service_id).clone()))
            .collect();

        let mut pairs_of: BTreeMap<&Tenant, i64> = BTreeMap::new();
        for id in &ids {
            *pairs_of.entry(&id.tenant).or_default() += 1;
        }
        let tenants: Vec<&Tenant> = pairs_of.keys().copied().collect();
        let above = totals::pairs_above_zero(work.connection, &tenants).await?;
        let room: BTreeMap<Tenant, i64> = tenants
            .iter()
            .zip(above)
            .map(|(tenant, above)| ((*tenant).clone(), work.limits.usage_store_max_keys - above))
            .collect();

        // Only who could run out of room needs to know which pairs take some.
        let doubtful: Vec<&CounterId> = ids.iter().filter(|id| room[&id.tenant] < pairs_of[&id.tenant]).collect();
        let mut above_zero = BTreeSet::new();
        if !doubtful.is_empty() {
            let above = usage::above_zero(work.connection, &doubtful).await?;
            above_zero =
                doubtful.into_iter().zip(above).filter(|(_, above)| *above).map(|(id, _)| id.clone()).collect();
        }
        Ok(Self { disabled, room, above_zero })
    }

    /// One verdict for each record, in order, and the sum that each pair gets.
    fn decide(mut self, requests: &[Numbered<'_>]) -> (Vec<Verdict>, BTreeMap<CounterId, Addition>) {
        let mut verdicts = Vec::new();
        let mut added: BTreeMap<CounterId, Addition> = BTreeMap::new();
        for (_, request) in requests {
            for record in records_of(request) {
                verdicts.push(match record {
                    Some(record) => self.admit(request, record, &mut added),
                    None => Err(Rejection::InvalidItem),
                });
            }
        }
        (verdicts, added)
    }

    fn admit(&mut self, request: &Request, record: &UsageRecord, added: &mut BTreeMap<CounterId, Addition>) -> Verdict {
        let is_disabled = !self.disabled.is_empty()
            && self.disabled.contains(&(request.tenant.clone(), record.pair.service_id.clone()));
        if is_disabled {
            return Err(Rejection::Disabled);
        }
        let id = counter_id(&request.tenant, &record.pair);
        if let Some(addition) = added.get_mut(&id) {
            addition.requests += record.requests;
            return Ok(());
        }
        if !self.above_zero.contains(&id) {
            let room = self.room.get_mut(&request.tenant).expect("every tenant's room was loaded");
            if *room <= 0 {
                return Err(Rejection::Capacity);
            }
            *room -= 1;
        }
        let arrival = added.len() as i64 + 1;
        added.insert(id, Addition { requests: record.requests, arrival });
        Ok(())
    }
}

/// Writes the sums. Returns what was outstanding of each pair before.
async fn add(
    work: &mut Work<'_>,
    added: BTreeMap<CounterId, Addition>,
) -> Result<BTreeMap<CounterId, i64>, StoreError> {
    if added.is_empty() {
        return Ok(BTreeMap::new());
    }
    let list: Vec<(&CounterId, Addition)> = added.iter().map(|(id, addition)| (id, *addition)).collect();
    let counters = usage::add(work.connection, &list).await?;
    let mut before = BTreeMap::new();
    for ((id, Addition { requests, .. }), counter) in added.iter().zip(counters) {
        let totals = work.totals_of(&id.tenant);
        totals.outstanding += requests;
        totals.lifetime += requests;
        totals.pairs += i64::from(counter.lifetime == *requests);
        totals.pairs_above_zero += i64::from(counter.outstanding == *requests);
        before.insert(id.clone(), counter.outstanding - requests);
        if let Some(held) = work.held.get_mut(id) {
            *held = counter.outstanding;
        }
    }
    Ok(before)
}

/// The total after this record, told to the log as well.
fn settle_total(
    work: &mut Work<'_>,
    running: &mut BTreeMap<CounterId, i64>,
    request: &Request,
    record: &UsageRecord,
    is_bulk: bool,
) -> Count {
    let total =
        running.get_mut(&counter_id(&request.tenant, &record.pair)).expect("every accepted record's pair was added to");
    *total += record.requests;
    let total = Count(*total);
    let event = Event::UsageRecorded {
        agent: record.pair.agent.clone(),
        service_id: record.pair.service_id.clone(),
        requests: record.requests,
        total,
        bulk: is_bulk,
    };
    work.events.push((request.tenant.clone(), event));
    total
}

fn single_outcome(request: &Request, totals: Vec<Result<Count, Rejection>>) -> Outcome {
    let Command::RecordUsage(UsageRecord { pair, .. }) = &request.command else {
        unreachable!("only usage is recorded here");
    };
    match totals.first() {
        Some(Ok(total)) => {
            Ok(Reply::json(201, &Recorded { agent: &pair.agent, service_id: &pair.service_id, total: *total }))
        }
        Some(Err(Rejection::Disabled)) => Err(Refusal::ServiceDisabled(pair.service_id.clone())),
        _ => Err(Refusal::UsageCapacity),
    }
}

fn bulk_outcome(totals: Vec<Result<Count, Rejection>>) -> Outcome {
    let results = totals
        .into_iter()
        .enumerate()
        .map(|(index, total)| ItemResult {
            index,
            ok: total.is_ok(),
            error: total.err().map(Rejection::item_code),
            total: total.ok(),
        })
        .collect();
    Ok(Reply::json(201, &BulkRecorded { results }))
}

/// The records of a request, in order; none for an invalid item.
fn records_of(request: &Request) -> impl Iterator<Item = Option<&UsageRecord>> {
    let (single, bulk) = match &request.command {
        Command::RecordUsage(record) => (Some(Some(record)), [].as_slice()),
        Command::RecordUsageBulk(items) => (None, items.as_slice()),
        _ => (None, [].as_slice()),
    };
    single.into_iter().chain(bulk.iter().map(Option::as_ref))
}

fn counter_id(tenant: &Tenant, pair: &Pair) -> CounterId {
    CounterId { tenant: tenant.clone(), pair: pair.clone() }
}
