//! Applies the commands of a batch: usage, settlements and resets in memory, the rare commands by statements of their own.

use std::collections::{BTreeSet, HashMap};

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::AgentId;
use crate::domain::usage::Pair;
use crate::store::{StoreError, usage};

use super::idempotency::{self, Verdict};
use super::job::Job;
use super::work::{Outcome, Work};
use super::{Answer, Command, Request, administer, change_service, delete_service, manage_api_key, manage_webhook};
use super::{record_usage, register_service, register_services, reset_usage, settle, switch_service};

/// The pairs of the agents that are settled as a whole, in the order of their creation.
pub type PairsOfAgents<'a> = HashMap<(&'a Tenant, &'a AgentId), Vec<Pair>>;

/// Looks up those of the agents that a batch settles.
pub async fn find_pairs_of_agents<'a>(
    connection: &mut PgConnection,
    jobs: &'a [Job],
) -> Result<PairsOfAgents<'a>, StoreError> {
    let settled = jobs.iter().filter_map(|job| match &job.request.command {
        Command::SettleAgent(agent) => Some((&job.request.tenant, agent)),
        _ => None,
    });
    let agents: Vec<_> = settled.collect::<BTreeSet<_>>().into_iter().collect();
    if agents.is_empty() {
        return Ok(PairsOfAgents::new());
    }
    let services = usage::services_of_agents(connection, &agents).await?;
    let pairs = agents.into_iter().zip(services).map(|((tenant, agent), services)| {
        let pairs = services.into_iter().map(|service_id| Pair { agent: agent.clone(), service_id });
        ((tenant, agent), pairs.collect())
    });
    Ok(pairs.collect())
}

/// Applies the commands that run: usage first, then settlements and resets, then the rare ones, each as they came.
/// Returns what each of them is answered.
pub async fn apply(
    work: &mut Work<'_>,
    jobs: &[Job],
    verdicts: &[Verdict],
    of_agents: &PairsOfAgents<'_>,
) -> Result<Vec<Option<Answer>>, StoreError> {
    let running = || jobs.iter().enumerate().filter(|(place, _)| verdicts[*place].runs());
    let mut outcomes: Vec<Option<Outcome>> = vec![None; jobs.len()];
    for (place, Job { request, .. }) in running() {
        outcomes[place] = match &request.command {
            Command::RecordUsage(record) => Some(record_usage::apply(work, request, record)),
            Command::RecordUsageBulk(items) => Some(record_usage::apply_bulk(work, request, items)),
            _ => None,
        };
    }
    for (place, Job { request, .. }) in running() {
        match &request.command {
            Command::Settle(pair) => outcomes[place] = Some(settle::apply(work, request, pair)),
            Command::SettleAgent(agent) => {
                let known = &of_agents[&(&request.tenant, agent)];
                // Usage of this batch counts as recorded before, all of it or none.
                let new = work.ledger.new_pairs(&request.tenant, agent);
                let pairs: Vec<&Pair> = known.iter().chain(&new).collect();
                outcomes[place] = Some(settle::apply_to_agent(work, request, agent, &pairs));
            }
            Command::ResetUsage(pair) => outcomes[place] = Some(reset_usage::apply(work, request, pair)),
            _ => {}
        }
    }
    for (place, Job { request, .. }) in running() {
        if outcomes[place].is_none() {
            outcomes[place] = Some(apply_rare(work, request).await?);
        }
    }
    let answered = outcomes.into_iter().zip(jobs);
    Ok(answered.map(|(outcome, job)| Some(idempotency::answer(&job.request, outcome?))).collect())
}

async fn apply_rare(work: &mut Work<'_>, request: &Request) -> Result<Outcome, StoreError> {
    match &request.command {
        Command::RegisterService(registration) => register_service::apply(work, request, registration).await,
        Command::RegisterServices(items) => register_services::apply(work, request, items).await,
        Command::ChangeService { service_id, edit } => change_service::apply(work, request, service_id, edit).await,
        Command::DeleteService(service_id) => delete_service::apply(work, request, service_id).await,
        Command::SwitchService { service_id, disabled } => {
            switch_service::apply(work, request, service_id, *disabled).await
        }
        Command::CreateApiKey { label, tenant_id } => manage_api_key::create(work, label, tenant_id.as_deref()).await,
        Command::RevokeApiKey { prefix } => manage_api_key::revoke(work, prefix).await,
        Command::CreateWebhook { url, events } => manage_webhook::create(work, &request.tenant, url, events).await,
        Command::ChangeWebhook { id, change } => manage_webhook::change(work, &request.tenant, id, change).await,
        Command::DeleteWebhook { id } => manage_webhook::delete(work, &request.tenant, id).await,
        Command::TestWebhook { id } => manage_webhook::test(work, &request.tenant, id).await,
        Command::SetPaused(paused) => administer::set_paused(work, *paused).await,
        Command::ChangeLimits(changes) => administer::change_limits(work, changes).await,
        Command::Reset { rate_buckets } => administer::reset(work, *rate_buckets).await,
        Command::Refuse(refusal) => Ok(Err(refusal.clone())),
        Command::RecordUsage(_)
        | Command::RecordUsageBulk(_)
        | Command::Settle(_)
        | Command::SettleAgent(_)
        | Command::ResetUsage(_) => unreachable!("applied before"),
    }
}
