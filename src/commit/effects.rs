//! Turns the decisions of a commit into rows: runs of events, outbox rows, and sums.

use std::collections::BTreeMap;

use crate::command::context::{Effects, TenantCounts};
use crate::command::counters::PairSums;
use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::store::commit::{CallerChange, NewEventRun, NewIdempotencyKey, RareTotals, TotalsChange};
use crate::store::outbox;
use crate::store::positions::EVENTS_PER_RUN_MAX;
use crate::telemetry::traces::RequestTrace;

/// The events of a commit as they are stored.
pub struct StoredEvents<'a> {
    runs: Vec<Run<'a>>,
}

/// Consecutive events of one tenant and type.
struct Run<'a> {
    tenant: &'a Tenant,
    event_type: &'static str,
    payloads: Vec<String>,
    /// The trace of the request of each event. Empty while traces are off.
    causes: Vec<Option<&'a RequestTrace>>,
    position: Option<i64>,
}

impl<'a> StoredEvents<'a> {
    /// The events of each tenant keep their order. `causes`: the trace of the request of each event. Empty while traces are
    /// off.
    pub fn of(events: &'a [(Tenant, Event)], causes: &[Option<&'a RequestTrace>]) -> Self {
        let mut of_tenants: BTreeMap<&Tenant, Vec<Run<'a>>> = BTreeMap::new();
        for (index, (tenant, event)) in events.iter().enumerate() {
            let runs = of_tenants.entry(tenant).or_default();
            let event_type = event.type_name();
            let cause = causes.get(index);
            match runs.last_mut() {
                Some(run) if run.event_type == event_type && run.payloads.len() < EVENTS_PER_RUN_MAX => {
                    run.payloads.push(event.to_json());
                    run.causes.extend(cause);
                }
                _ => {
                    let (payloads, causes) = (vec![event.to_json()], cause.copied().into_iter().collect());
                    runs.push(Run { tenant, event_type, payloads, causes, position: None });
                }
            }
        }
        Self { runs: of_tenants.into_values().flatten().collect() }
    }

    /// Sets positions that were drawn before the events are written, because outbox rows and webhook tests need them.
    pub fn set_positions(&mut self, positions: &[i64]) {
        for (run, position) in self.runs.iter_mut().zip(positions) {
            run.position = Some(*position);
        }
    }

    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Position and payload of the first event.
    pub fn first(&self) -> Option<(i64, &str)> {
        let run = self.runs.first()?;
        Some((run.position?, run.payloads.first()?))
    }

    pub fn is_of_any(&self, tenants: &[&Tenant]) -> bool {
        self.runs.iter().any(|run| tenants.contains(&run.tenant))
    }

    /// One row for each event of `tenants` whose position is drawn.
    pub fn outbox(&self, tenants: &[&Tenant]) -> Vec<outbox::Entry<'_>> {
        let runs = self.runs.iter().filter(|run| tenants.contains(&run.tenant));
        let positioned = runs.filter_map(|run| Some((run, run.position?)));
        positioned
            .flat_map(|(run, first)| {
                run.payloads.iter().enumerate().map(move |(index, payload)| outbox::Entry {
                    tenant: run.tenant,
                    position: first + index as i64,
                    event_type: run.event_type,
                    payload,
                    trace: run.causes.get(index).copied().flatten().map(RequestTrace::context),
                })
            })
            .collect()
    }

    pub fn rows(&self) -> Vec<NewEventRun<'_>> {
        let rows = self.runs.iter().map(|run| NewEventRun {
            tenant_id: run.tenant.as_str(),
            position: run.position,
            events: run.payloads.len() as i16,
            event_type: run.event_type,
            payloads: run.payloads.join("\n"),
        });
        rows.collect()
    }
}

/// Sums by tenant and service. Those of the tenant itself have an empty service.
pub type Sums<'a> = BTreeMap<(&'a str, &'a str), PairSums>;

/// What the commit adds to `totals`: the columns that most commits change, and those that few change.
pub fn totals<'a>(effects: &'a Effects, sums: &Sums<'a>) -> (Vec<TotalsChange<'a>>, Vec<RareTotals<'a>>) {
    let mut common: BTreeMap<(&str, &str), TotalsChange<'a>> = BTreeMap::new();
    let mut rare: BTreeMap<(&str, &str), RareTotals<'a>> = BTreeMap::new();
    for (&(tenant_id, service_id), sums) in sums {
        let PairSums { pairs_above_zero, outstanding, recorded, .. } = *sums;
        let change = TotalsChange { tenant_id, service_id, pairs_above_zero, outstanding, recorded, events: 0 };
        common.insert((tenant_id, service_id), change);
        if (sums.pairs, sums.agents) != (0, 0) {
            let change =
                RareTotals { tenant_id, service_id, pairs: sums.pairs, agents: sums.agents, ..RareTotals::default() };
            rare.insert((tenant_id, service_id), change);
        }
    }
    for (tenant, _) in &effects.events {
        let tenant_id = tenant.as_str();
        let none =
            TotalsChange { tenant_id, service_id: "", pairs_above_zero: 0, outstanding: 0, recorded: 0, events: 0 };
        common.entry((tenant_id, "")).or_insert(none).events += 1;
    }
    for (tenant, counts) in effects.counts.iter().filter(|(_, counts)| **counts != TenantCounts::default()) {
        let tenant_id = tenant.as_str();
        let change = rare.entry((tenant_id, "")).or_insert(RareTotals { tenant_id, ..RareTotals::default() });
        change.settlements += counts.settlements;
        change.settled_stroops += counts.settled_stroops;
        change.services += counts.services;
        change.webhooks += counts.webhooks;
        change.api_keys += counts.api_keys;
    }
    (common.into_values().collect(), rare.into_values().collect())
}

/// What the records add to the totals of their callers.
pub fn callers<'a>(records: &[NewIdempotencyKey<'a>]) -> Vec<CallerChange<'a>> {
    let mut changes: BTreeMap<&str, CallerChange<'a>> = BTreeMap::new();
    for record in records {
        let none = CallerChange { caller: record.caller, records: 0, bytes: 0 };
        let change = changes.entry(record.caller).or_insert(none);
        change.records += 1;
        change.bytes += record.bytes();
    }
    changes.into_values().collect()
}
