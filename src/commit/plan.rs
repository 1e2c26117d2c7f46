//! Step 1 of a batch: lists what the batch must know.

use std::collections::HashSet;

use crate::command::context::AgentsToSettle;
use crate::command::{BatchedCommand, Command};
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::usage::Pair;
use crate::store::idempotency::CallerKey;
use crate::store::usage::CounterId;

use super::job::Job;

/// Keys are in the order of their jobs. The rest is sorted and distinct.
pub struct Plan<'a> {
    pub keys: Vec<&'a CallerKey>,
    /// For each key, whether it must be read even if no record of it is cached.
    pub uncertain: Vec<bool>,
    pub tenants: Vec<&'a Tenant>,
    pub services: Vec<(&'a Tenant, &'a ServiceId)>,
}

/// The pairs that the jobs may change, sorted.
pub fn pairs(jobs: &[Job], agents: &AgentsToSettle) -> Vec<CounterId> {
    let mut pairs = Vec::with_capacity(jobs.len());
    for job in jobs {
        if let Some(command) = job.batched() {
            let tenant = &job.request.tenant;
            command.for_each_pair(|pair| pairs.push(CounterId { tenant: tenant.clone(), pair: pair.clone() }));
        }
    }
    for ((tenant, agent), of_agent) in &agents.0 {
        let pair = |service_id: &ServiceId| Pair { agent: agent.clone(), service_id: service_id.clone() };
        let ids =
            of_agent.pairs.iter().map(|(service_id, _)| CounterId { tenant: tenant.clone(), pair: pair(service_id) });
        pairs.extend(ids);
    }
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// Whether a request uses no other pairs than these. `pairs` is sorted.
pub fn is_within(pairs: &[CounterId], job: &Job) -> bool {
    let mut is_within = true;
    let tenant = &job.request.tenant;
    match job.batched() {
        // The pairs of its agent are not known yet.
        None | Some(BatchedCommand::SettleAgent(_)) => return false,
        Some(command) => command.for_each_pair(|pair| {
            is_within &= pairs.binary_search_by(|id| (&id.tenant, &id.pair).cmp(&(tenant, pair))).is_ok();
        }),
    }
    is_within
}

impl<'a> Plan<'a> {
    pub fn of(jobs: &'a [Job], pairs: &'a [CounterId], full: &HashSet<String>) -> Self {
        // A request of a full caller is refused unless its key is stored.
        let is_uncertain = |job: &Job, id: &CallerKey| {
            job.in_doubt.is_some() || job.progress.has_met_twin() || full.contains(&id.caller)
        };
        let keyed = || jobs.iter().filter_map(|job| Some((job, job.request.keyed.as_ref()?)));
        let mut tenants: Vec<&Tenant> = jobs.iter().map(|job| &job.request.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let mut services: Vec<(&Tenant, &ServiceId)> =
            pairs.iter().map(|id| (&id.tenant, &id.pair.service_id)).collect();
        services.sort_unstable();
        services.dedup();
        Self {
            keys: keyed().map(|(_, keyed)| &*keyed.id).collect(),
            uncertain: keyed().map(|(job, keyed)| is_uncertain(job, &keyed.id)).collect(),
            tenants,
            services,
        }
    }
}

impl Job {
    /// Whether no other commit may run at the same time.
    pub fn is_exclusive(&self) -> bool {
        matches!(&self.request.command, Command::Transactional(command) if command.is_exclusive())
    }

    /// The command, if it is batched.
    pub fn batched(&self) -> Option<&BatchedCommand> {
        match &self.request.command {
            Command::Batched(command) => Some(command),
            Command::Transactional(_) => None,
        }
    }
}
