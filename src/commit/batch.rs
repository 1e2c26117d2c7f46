//! One attempt to commit a batch, in five steps: plan, complete, deduplicate, decide, write. It answers no request; the
//! lane does that when the attempt has succeeded. An optimistic attempt without rare changes is one or two statements,
//! and the last one commits implicitly.

use std::collections::HashSet;
use std::time::Instant;

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::command::context::{AgentPairs, AgentsToSettle, BatchContext, Effects, Pricing};
use crate::command::counters::BatchCounters;
use crate::command::{Answer, BatchedCommand};
use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::settlement::Settlement;
use crate::store::agents as store_agents;
use crate::store::commit::{self, Changes, Known};
use crate::store::idempotency::CallerKey;
use crate::store::positions::{self, CommitNumbers, Numbered};
use crate::store::server::CommitTransaction;
use crate::store::usage::{self, CounterId};
use crate::telemetry::traces::{self, RequestTrace};

use super::attempt::{AttemptError, AttemptState, Done, Executed, Locking, Phase, Settings, draw_attempt_id};
use super::cache::ReadCache;
use super::dedup::{self, Dedup};
use super::effects::{self, StoredEvents, Sums};
use super::fence;
use super::job::Job;
use super::plan::{self, Plan};
use super::queue::Arrivals;

pub struct BatchAttempt<'a> {
    pub settings: Settings,
    pub rng: &'a mut StdRng,
    pub state: &'a AttemptState,
    pub cache: &'a mut ReadCache,
    /// Callers that may not create idempotency records.
    pub full: &'a HashSet<String>,
    /// The queue from which requests join a batch that waited for its counters, and the maximum number of rows.
    pub arrivals: Option<(&'a Arrivals, usize)>,
}

/// The result of step 4.
struct Decided<'a> {
    answers: Vec<Option<Answer>>,
    counters: BatchCounters<'a>,
    settlements: Vec<(Tenant, Settlement)>,
    unpriced: Vec<(Tenant, ServiceId)>,
    effects: Effects,
    /// The trace of the request of each event. Empty while traces are off.
    causes: Vec<Option<&'a RequestTrace>>,
}

impl BatchAttempt<'_> {
    /// Leaves `transaction` open after an error, and if nothing had to be written.
    pub async fn run(
        mut self,
        transaction: &mut CommitTransaction<'_>,
        jobs: &mut Vec<Job>,
    ) -> Result<Done, AttemptError> {
        let began = Instant::now();
        let locking = self.settings.locking;
        // A pessimistic attempt locks the rows that it reads.
        let is_pessimistic = locking != Locking::Optimistic;
        if is_pessimistic {
            transaction.begin(self.settings.dialect, locking.lock_timeout(), None).await?;
        }

        // 1. Plan: list what the batch must know.
        let agents = self.agents_to_settle(transaction.connection(), jobs, is_pessimistic).await?;
        let pairs = plan::pairs(jobs, &agents);
        let locked = if is_pessimistic { Some(usage::lock(transaction.connection(), &pairs).await?) } else { None };
        if is_pessimistic {
            self.let_join(jobs, &pairs);
            self.settings.now = self.settings.now.plus_ms(began.elapsed().as_millis() as i64);
        }
        let (jobs, now) = (jobs.as_slice(), self.settings.now);
        let plan = Plan::of(jobs, &pairs, self.full);

        // 2. Complete: use what is cached, and read the rest with at most one SELECT of each kind.
        let mut known = self.cache.complete(transaction.connection(), &plan, &pairs, locked, &agents).await?;

        // 3. Deduplicate: classify each request as new, replay, conflict, or duplicate within the batch.
        let away = fence::away(jobs, &plan, &known)?;
        let mut dedup = dedup::dedup(jobs, std::mem::take(&mut known.responses), now, self.full);
        fence::refuse(jobs, &away, &mut dedup);
        if !dedup.iter().any(Dedup::executes) {
            return Ok(Done { answers: answers_in_order(jobs, dedup, Vec::new()), ..Done::default() });
        }

        // 4. Decide: compute all changes in memory.
        let at_home = plan.tenants.iter().zip(&known.tenants).filter(|(_, terms)| terms.residence.executes());
        let terms: Vec<(&Tenant, i64)> = at_home.map(|(tenant, terms)| (*tenant, terms.revision)).collect();
        let has_webhooks = plan.tenants.iter().zip(&known.tenants).filter(|(_, terms)| terms.has_webhooks);
        let listening: Vec<&Tenant> = has_webhooks.map(|(tenant, _)| *tenant).collect();
        let decided = self.decide(jobs, &dedup, &plan, &pairs, known, agents);
        let leaves_no_record =
            |(job, answer): (&Job, &Option<Answer>)| dedup::leaves_no_record(&job.request, answer.as_ref());
        if self.cache.presumed_keys() && jobs.iter().zip(&decided.answers).any(leaves_no_record) {
            self.cache.read_keys_next_time();
            return Err(AttemptError::UnverifiedKey);
        }

        // 5. Write: one transaction. Requests can be withdrawn until it commits.
        let attempt_id = draw_attempt_id(self.rng);
        let mut events = StoredEvents::of(&decided.effects.events, &decided.causes);
        // The statements that write draw what is not drawn here. On Citus they draw nothing.
        let (dialect, connection) = (self.settings.dialect, transaction.connection());
        let mut numbers = CommitNumbers::default();
        if dialect.is_citus() {
            let pairs = decided.counters.new_pairs();
            let agents = pairs.iter().filter_map(|pair| pair.agent_arrival).max().unwrap_or_default();
            numbers = positions::draw_for_commit(connection, events.runs(), agents as usize, pairs.len()).await?;
            events.set_positions(&numbers.event_runs);
        } else if events.runs() > 0 && events.is_of_any(&listening) {
            events.set_positions(&positions::draw(connection, dialect, Numbered::EventRuns, events.runs()).await?);
        }
        let changes =
            Changes { numbers, ..self.changes(jobs, &dedup, &decided, &events, &listening, attempt_id, terms) };
        let executed =
            Executed { attempt_id, expires_at: changes.expires_at, jobs: dedup.iter().map(Dedup::executes).collect() };
        if !transaction.is_open() && !dialect.is_citus() && changes.is_one_statement() {
            self.state.claim(jobs, executed)?;
            commit::write(transaction.connection(), dialect, &changes).await?;
        } else {
            if !transaction.is_open() {
                transaction.begin(self.settings.dialect, locking.lock_timeout(), None).await?;
            }
            self.state.set(Phase::Write);
            commit::write(transaction.connection(), dialect, &changes).await?;
            self.state.claim(jobs, executed)?;
            transaction.commit().await?;
        }
        let has_outbox = !changes.outbox.is_empty();
        drop(changes);
        Ok(Done {
            executed: dedup.iter().filter(|dedup| dedup.executes()).count(),
            has_outbox,
            written: decided.counters.written(attempt_id).map(|(id, counter)| (id.clone(), counter)).collect(),
            answers: answers_in_order(jobs, dedup, decided.answers),
            unpriced: decided.unpriced,
        })
    }

    /// Other transactions want the same counters. Requests for them that arrived while this batch waited for its locks
    /// join it, so that one turn at a hot pair commits everything that waits.
    fn let_join(&self, jobs: &mut Vec<Job>, pairs: &[CounterId]) {
        let Some((arrivals, rows_max)) = self.arrivals else { return };
        // The attempt ends at the earliest deadline of its requests.
        let earliest = jobs.iter().map(|job| job.request.deadline).min();
        let may_join = |job: &Job| Some(job.request.deadline) >= earliest && plan::is_within(pairs, job);
        arrivals.take_while(jobs, rows_max, may_join);
    }

    /// Reads the pairs of the agents that the batch settles. Bounded, however many pairs are stored.
    async fn agents_to_settle(
        &self,
        connection: &mut PgConnection,
        jobs: &[Job],
        locks: bool,
    ) -> Result<AgentsToSettle, AttemptError> {
        let settled = jobs.iter().enumerate().filter_map(|(index, job)| match job.batched() {
            Some(BatchedCommand::SettleAgent(agent)) => Some((index, (&job.request.tenant, agent))),
            _ => None,
        });
        let (indexes, wanted): (Vec<usize>, Vec<(&Tenant, &AgentId)>) = settled.unzip();
        let mut agents = AgentsToSettle::default();
        if wanted.is_empty() {
            return Ok(agents);
        }
        if locks {
            // A locked agent gets no new pairs.
            store_agents::lock(connection, &wanted).await?;
        }
        if self.settings.pairs_max >= usage::SETTLED_MAX {
            let priced_only = self.settings.require_registered_services;
            for (tenant, agent) in wanted {
                let (pairs, has_more) = usage::pairs_to_settle(connection, tenant, agent, priced_only).await?;
                agents.0.insert((tenant.clone(), agent.clone()), AgentPairs { pairs, has_more });
            }
            return Ok(agents);
        }
        let mut pairs_left = self.settings.pairs_max;
        let mut too_many = Vec::new();
        let pairs = usage::pairs_of_agents(connection, &wanted, pairs_left).await?;
        for ((index, (tenant, agent)), pairs) in indexes.into_iter().zip(wanted).zip(pairs) {
            match pairs.filter(|pairs| pairs.len() <= pairs_left) {
                Some(pairs) => {
                    pairs_left -= pairs.len();
                    agents.0.insert((tenant.clone(), agent.clone()), AgentPairs { pairs, has_more: false });
                }
                None => too_many.push(index),
            }
        }
        if too_many.is_empty() { Ok(agents) } else { Err(AttemptError::TooManyPairs(too_many)) }
    }

    /// Applies the commands to execute: first usage, then settlements and resets, each in order of arrival.
    fn decide<'a>(
        &mut self,
        jobs: &'a [Job],
        dedup: &[Dedup],
        plan: &Plan<'_>,
        pairs: &'a [CounterId],
        known: Known,
        agents: AgentsToSettle,
    ) -> Decided<'a> {
        let mut pricing = Pricing::default();
        for ((tenant, service_id), terms) in plan.services.iter().zip(&known.services) {
            if let Some(terms) = terms {
                pricing.insert(tenant, service_id, *terms);
            }
        }
        let capacity_max = self.settings.limits.usage_store_max_keys;
        let capacity_left = known.pairs_above_zero.into_iter().map(|(tenant, pairs)| (tenant, capacity_max - pairs));
        let mut context = BatchContext {
            now: self.settings.now,
            require_registered_services: self.settings.require_registered_services,
            rng: &mut *self.rng,
            counters: BatchCounters::new(pairs, known.counters, known.agents),
            pricing,
            agents,
            capacity_left: capacity_left.collect(),
            settlements: Vec::new(),
            unpriced: Vec::new(),
            effects: Effects::default(),
        };
        let mut answers = vec![None; jobs.len()];
        let mut causes = Vec::new();
        for is_usage in [true, false] {
            for (index, job) in jobs.iter().enumerate().filter(|(index, _)| dedup[*index].executes()) {
                if let Some(command) = job.batched().filter(|command| command.is_usage() == is_usage) {
                    answers[index] = Some(dedup::answer(&job.request, command.apply(&mut context, &job.request)));
                    if traces::are_on() {
                        causes.resize(context.effects.events.len(), job.request.trace.as_deref());
                    }
                }
            }
        }
        let BatchContext { counters, settlements, unpriced, effects, .. } = context;
        Decided { answers, counters, settlements, unpriced, effects, causes }
    }

    #[expect(clippy::too_many_arguments, reason = "everything that was decided")]
    fn changes<'a>(
        &self,
        jobs: &'a [Job],
        dedup: &[Dedup],
        decided: &'a Decided<'a>,
        events: &'a StoredEvents<'a>,
        listening: &[&Tenant],
        attempt_id: i64,
        terms: Vec<(&'a Tenant, i64)>,
    ) -> Changes<'a> {
        let Settings { now, ttl_ms, shard, .. } = self.settings;
        let new_pairs = decided.counters.new_pairs();
        let mut sums = Sums::new();
        for (id, change) in decided.counters.sums() {
            for service_id in ["", id.pair.service_id.as_str()] {
                *sums.entry((id.tenant.as_str(), service_id)).or_default() += change;
            }
        }
        let mut agents: Vec<_> = new_pairs
            .iter()
            .filter(|pair| pair.agent_arrival.is_some())
            .map(|pair| (&pair.id.tenant, &pair.id.pair.agent))
            .collect();
        agents.dedup();
        for (tenant, _) in agents {
            sums.entry((tenant.as_str(), "")).or_default().agents += 1;
        }
        let (totals, rare_totals) = effects::totals(&decided.effects, &sums);
        let answered = jobs.iter().zip(&decided.answers);
        let keys = dedup::records(answered.filter_map(|(job, answer)| Some((&*job.request, answer.as_ref()?))));
        Changes {
            attempt_id,
            now,
            expires_at: now.plus_ms(ttl_ms),
            shard,
            counters: decided.counters.changes(),
            new_pairs,
            numbers: CommitNumbers::default(),
            totals,
            rare_totals,
            callers: effects::callers(&keys),
            settlements: &decided.settlements,
            event_runs: events.rows(),
            outbox: events.outbox(listening),
            keys,
            expired: expired_keys(jobs, dedup),
            terms,
        }
    }
}

/// The keys whose expired record is replaced, sorted.
fn expired_keys<'a>(jobs: &'a [Job], dedup: &[Dedup]) -> Vec<&'a CallerKey> {
    let replaced = jobs.iter().zip(dedup).filter(|(_, dedup)| **dedup == Dedup::Replace);
    let mut keys: Vec<&CallerKey> = replaced.filter_map(|(job, _)| Some(&*job.request.keyed.as_ref()?.id)).collect();
    keys.sort_unstable_by_key(|id| (&id.key, &id.caller));
    keys
}

/// All answers in the order of the jobs. A duplicate shares the answer of its leader.
fn answers_in_order(jobs: &[Job], dedup: Vec<Dedup>, mut answers: Vec<Option<Answer>>) -> Vec<Option<Answer>> {
    answers.resize(jobs.len(), None);
    for (index, dedup) in dedup.into_iter().enumerate() {
        match dedup {
            Dedup::Answered(answer) => answers[index] = Some(answer),
            // A leader precedes its duplicates, so it already has its answer.
            Dedup::DuplicateOf(leader) => {
                let shared = answers[leader].as_ref();
                answers[index] =
                    shared.and_then(|answer| dedup::share(&jobs[index].request, &jobs[leader].request, answer));
            }
            Dedup::Execute | Dedup::Replace => {}
        }
    }
    answers
}
