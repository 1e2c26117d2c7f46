//! One attempt to commit a batch: recall or read, decide, write. It answers nobody; the lane does, after it returned.
//! Usage and settlement need one statement or two, and the last one commits by itself. A batch with a rare command in it,
//! or one that has to lock what it reads, runs the same way inside a transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use sqlx::PgConnection;
use tokio::sync::Notify;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::limits::Limits;
use crate::domain::names::ServiceId;
use crate::domain::service::Terms;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::Pair;
use crate::job_health::{self, JobHealth};
use crate::metrics;
use crate::store::batch::{self, Changes, Known, Wanted};
use crate::store::idempotency::{CallerKey, NewRecord};
use crate::store::record_counts::{Change, Kind};
use crate::store::totals::{ALL_TENANTS, TenantChange};
use crate::store::usage::{Counter, CounterId};
use crate::store::{StoreError, idempotency as records, server, usage};

use super::apply::{PairsOfAgents, apply, find_pairs_of_agents};
use super::idempotency::{self, Verdict};
use super::job::Job;
use super::ledger::{self, Ledger};
use super::memory::Memory;
use super::outbox::{self, Happened};
use super::unpriced::UnpricedServices;
use super::work::Work;
use super::{Answer, Command};

/// How far an attempt got: what a failure means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing can have been committed.
    Read,
    /// The same, and what the attempt waits for are the keys, since it has locked its counters.
    Write,
    /// The statement that commits was sent.
    Commit,
}

/// The phase of an attempt, for the lane that watches it.
#[derive(Debug, Default)]
pub struct PhaseCell(AtomicU8);

impl PhaseCell {
    pub fn get(&self) -> Phase {
        [Phase::Read, Phase::Write, Phase::Commit][usize::from(self.0.load(Ordering::Acquire))]
    }

    fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }
}

/// Why an attempt changed nothing, or in [`Phase::Commit`] perhaps something.
#[derive(Debug, thiserror::Error)]
pub enum Setback {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A handler gave up while the batch ran. Without that job it can run again.
    #[error("a request was withdrawn")]
    Withdrawn,
    /// A key was taken to be new, and nothing that is written would tell if it is not. It runs again, and looks.
    #[error("a key was not looked up")]
    Presumed,
}

/// How long a batch waits for a lock: longer than a commit takes, so that replicas simply take turns.
pub const LOCK_TIMEOUT: &str = "500ms";

/// The same for a reset. All commits queue behind it, so it gives up before they do, and tries again.
const ALONE_LOCK_TIMEOUT: &str = "200ms";

/// How a batch meets others that want the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// Reads without locking, and begins again if what it read has moved.
    Hopeful,
    /// Locks the counters before it reads them.
    Locking,
    /// The same for one request that is known to be blocked: it waits only briefly, so that others get their turn.
    Brief,
    /// For a reset: no other commit is under way.
    Alone,
}

impl Manners {
    fn lock_timeout(self) -> &'static str {
        match self {
            Self::Hopeful | Self::Locking => LOCK_TIMEOUT,
            Self::Brief => "50ms",
            Self::Alone => ALONE_LOCK_TIMEOUT,
        }
    }
}

/// What an attempt is told.
pub struct Attempt<'a> {
    pub now: Timestamp,
    pub limits: Limits,
    pub ttl_ms: i64,
    pub require_registered_services: bool,
    /// Which of an owner's rows of totals this lane uses.
    pub shard: i16,
    pub manners: Manners,
    pub dice: &'a mut StdRng,
    pub phase: &'a PhaseCell,
    pub memory: &'a mut Memory,
    /// Told after a COMMIT that there are new deliveries.
    pub deliveries: &'a Notify,
    /// Told after a COMMIT what was settled without a price.
    pub unpriced: &'a UnpricedServices,
    /// Told after a COMMIT that there was one.
    pub health: &'a JobHealth,
}

impl Attempt<'_> {
    /// One answer for each job, committed. None for a twin whose leader left no record: it has to run in a later batch.
    pub async fn run(mut self, connection: &mut PgConnection, jobs: &[Job]) -> Result<Vec<Option<Answer>>, Setback> {
        self.phase.set(Phase::Read);
        self.memory.begin();
        let began = Instant::now();
        let is_plain = jobs.iter().all(|job| job.request.command.is_set_wise());
        let done = if is_plain && self.manners == Manners::Hopeful {
            self.execute(connection, jobs, false).await?
        } else {
            self.execute_in_transaction(connection, jobs).await?
        };
        // Committed: not a moment earlier is it known what is stored.
        done.written.iter().for_each(|(id, counter)| self.memory.note_counter(id, *counter));
        if !is_plain {
            self.memory.forget_terms();
        }
        if done.executed > 0 {
            metrics::committed(done.executed, began.elapsed());
            self.health.note(job_health::Job::Commit, &Ok(()));
        }
        self.unpriced.note(done.unpriced);
        if done.has_deliveries {
            self.deliveries.notify_one();
        }
        Ok(done.answers)
    }

    async fn execute_in_transaction(&mut self, connection: &mut PgConnection, jobs: &[Job]) -> Result<Done, Setback> {
        let latest = jobs.iter().map(|job| job.request.deadline).max().filter(|_| self.manners == Manners::Alone);
        let alone = latest.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let error = match server::begin_commit(&mut *connection, self.manners.lock_timeout(), alone).await {
            Ok(mut transaction) => match self.execute(&mut transaction, jobs, true).await {
                Ok(done) => {
                    transaction.commit().await.map_err(StoreError::from)?;
                    return Ok(done);
                }
                Err(setback) => {
                    // At once, because an idle lane must not keep rows locked. A connection that cannot even do that is
                    // broken, which its next use finds out.
                    let _ = transaction.rollback().await;
                    return Err(setback);
                }
            },
            Err(error) => error,
        };
        server::end_begun(connection).await;
        Err(error.into())
    }

    async fn execute(
        &mut self,
        connection: &mut PgConnection,
        jobs: &[Job],
        in_transaction: bool,
    ) -> Result<Done, Setback> {
        let of_agents = find_pairs_of_agents(connection, jobs).await?;
        let ids = counter_ids(jobs, &of_agents);
        if self.manners != Manners::Hopeful {
            usage::lock(connection, &ids).await?;
        }
        let wanted = Wanted {
            keys: jobs.iter().filter_map(|job| Some(&job.request.keyed.as_ref()?.id)).collect(),
            pairs: ids.iter().collect(),
            offers: distinct(ids.iter().map(|id| (&id.tenant, &id.pair.service_id))),
            tenants: distinct(jobs.iter().map(|job| &job.request.tenant)),
        };
        let mut known = if in_transaction {
            batch::read(connection, &wanted).await?
        } else {
            self.learn(connection, jobs, &wanted).await?
        };
        self.memory.note_keys(&wanted.keys);
        let verdicts = idempotency::judge(jobs, std::mem::take(&mut known.replies), self.now);
        if !verdicts.iter().any(Verdict::runs) {
            return Ok(Done {
                answers: gather(jobs, verdicts, Vec::new()),
                executed: 0,
                has_deliveries: false,
                unpriced: Vec::new(),
                written: Vec::new(),
            });
        }
        let expired = expired_keys(jobs, &verdicts);
        let removed = records::remove_expired(connection, &expired, self.now, !in_transaction).await?;

        let (terms, room) = (terms(&wanted, &known), room(&wanted, &known, self.limits));
        let webhooks = wanted.tenants.iter().copied().zip(known.webhooks);
        let listening: Vec<&Tenant> =
            webhooks.clone().filter(|(_, webhooks)| *webhooks > 0).map(|(tenant, _)| tenant).collect();
        // A transaction may have changed by itself what it knew of them.
        let relied_on = !in_transaction;
        let offers = wanted.offers.iter().zip(known.terms).filter(|_| relied_on);
        let offers = offers.map(|((tenant, service), terms)| (*tenant, *service, terms)).collect();
        let webhooks = webhooks.filter(|_| relied_on).collect();
        let mut work = Work {
            connection,
            now: self.now,
            limits: self.limits,
            require_registered_services: self.require_registered_services,
            dice: &mut *self.dice,
            ledger: Ledger::new(&ids, known.counters, known.agents),
            terms,
            room,
            events: Vec::new(),
            webhook_tests: Vec::new(),
            settlements: Vec::new(),
            unpriced: Vec::new(),
            totals: BTreeMap::new(),
        };
        let answers = apply(&mut work, jobs, &verdicts, &of_agents).await?;
        if self.memory.is_relied_on() && jobs.iter().zip(&answers).any(leaves_no_record) {
            self.memory.read_next_time();
            return Err(Setback::Presumed);
        }
        let Work { connection, dice, ledger, events, webhook_tests: tests, settlements, unpriced, totals, .. } = work;
        let payloads: Vec<String> = events.iter().map(|(_, event)| event.to_json()).collect();
        let happened = Happened { events: &events, payloads: &payloads, tests: &tests, now: self.now };
        let outbox = outbox::fill(connection, &happened, &listening, dice).await?;
        let records = records_of(jobs, &answers, self.now, self.ttl_ms);
        let replies = records.len() as i64 - if in_transaction { removed } else { 0 };
        let changes = Changes {
            counters: ledger.changed_counters(dice),
            agents: ledger.new_agents(),
            services: ledger.service_changes(),
            tenants: tenant_changes(&ledger, &events, replies, totals),
            record_counts: record_counts(&records, &events),
            settlements: &settlements,
            events: &events,
            payloads: &payloads,
            positions: outbox.positions,
            deliveries: outbox.entries,
            records,
            offers,
            webhooks,
        };
        if in_transaction {
            self.phase.set(Phase::Write);
        } else {
            claim(self.phase, jobs)?;
        }
        batch::write(connection, &changes, self.shard, self.now, self.manners.lock_timeout()).await?;
        if in_transaction {
            claim(self.phase, jobs)?;
        }
        let written = changes.counters.iter().map(|changed| (changed.id.clone(), changed.counter)).collect();
        let has_deliveries = !changes.deliveries.is_empty();
        let executed = verdicts.iter().filter(|verdict| verdict.runs()).count();
        Ok(Done { answers: gather(jobs, verdicts, answers), executed, has_deliveries, unpriced, written })
    }
}

impl Attempt<'_> {
    /// What is remembered, and the rest read.
    async fn learn(
        &mut self,
        connection: &mut PgConnection,
        jobs: &[Job],
        wanted: &Wanted<'_>,
    ) -> Result<Known, StoreError> {
        let keyed = jobs.iter().filter(|job| job.request.keyed.is_some());
        let uncertain: Vec<bool> = keyed.map(|job| job.unsettled.is_some() || job.progress.has_met_twin()).collect();
        let recalled = self.memory.recall(wanted, &uncertain);
        let rest = recalled.rest(wanted);
        let read = if rest.is_empty() { Known::default() } else { batch::read(connection, &rest).await? };
        self.memory.note_read(&rest, &read);
        Ok(recalled.with(read))
    }
}

/// What an attempt did.
struct Done {
    answers: Vec<Option<Answer>>,
    /// How many of the jobs ran, and were not answered from what is stored.
    executed: usize,
    has_deliveries: bool,
    /// The service of each settlement without a price.
    unpriced: Vec<(Tenant, ServiceId)>,
    /// The counters as they are stored now.
    written: Vec<(CounterId, Counter)>,
}

/// The moment before COMMIT: from here on nobody can withdraw.
fn claim(phase: &PhaseCell, jobs: &[Job]) -> Result<(), Setback> {
    let now = Instant::now();
    if !jobs.iter().all(|job| job.request.deadline > now && job.begin_commit()) {
        return Err(Setback::Withdrawn);
    }
    phase.set(Phase::Commit);
    Ok(())
}

/// All pairs that the batch may change: sorted, which is the order in which everybody locks them.
fn counter_ids(jobs: &[Job], of_agents: &PairsOfAgents<'_>) -> Vec<CounterId> {
    let mut ids: Vec<CounterId> = Vec::with_capacity(jobs.len());
    let mut add = |tenant: &Tenant, pair: &Pair| ids.push(CounterId { tenant: tenant.clone(), pair: pair.clone() });
    for Job { request, .. } in jobs {
        match &request.command {
            Command::RecordUsage(record) => add(&request.tenant, &record.pair),
            Command::RecordUsageBulk(items) => {
                items.iter().flatten().for_each(|record| add(&request.tenant, &record.pair));
            }
            Command::Settle(pair) | Command::ResetUsage(pair) => add(&request.tenant, pair),
            Command::SettleAgent(agent) => {
                of_agents[&(&request.tenant, agent)].iter().for_each(|pair| add(&request.tenant, pair));
            }
            _ => {}
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn distinct<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<BTreeSet<T>>().into_iter().collect()
}

/// The keys whose expired record is about to be replaced, sorted.
fn expired_keys<'a>(jobs: &'a [Job], verdicts: &[Verdict]) -> Vec<&'a CallerKey> {
    let anew = jobs.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::RunAnew);
    distinct(anew.filter_map(|(job, _)| Some(&job.request.keyed.as_ref()?.id)))
}

/// Whether the key of a request that ran is stored with nothing, so that nothing would notice an earlier record of it.
fn leaves_no_record((job, answer): (&Job, &Option<Answer>)) -> bool {
    job.request.keyed.is_some() && matches!(answer, Some(Answer::Refused(_)))
}

fn terms(wanted: &Wanted<'_>, known: &Known) -> HashMap<Tenant, HashMap<ServiceId, Terms>> {
    let mut terms: HashMap<Tenant, HashMap<ServiceId, Terms>> = HashMap::new();
    for ((tenant, service_id), found) in wanted.offers.iter().zip(&known.terms) {
        if let Some(found) = found {
            terms.entry((*tenant).clone()).or_default().insert((*service_id).clone(), *found);
        }
    }
    terms
}

fn room(wanted: &Wanted<'_>, known: &Known, limits: Limits) -> BTreeMap<Tenant, i64> {
    let tenants = wanted.tenants.iter().zip(&known.pairs_above_zero);
    tenants.filter_map(|(tenant, above)| Some(((*tenant).clone(), limits.usage_store_max_keys - (*above)?))).collect()
}

/// What the batch changes of the tenants' totals, and of those of all tenants together.
fn tenant_changes(
    ledger: &Ledger<'_>,
    events: &[(Tenant, Event)],
    replies: i64,
    mut changes: BTreeMap<Tenant, TenantChange>,
) -> BTreeMap<Tenant, TenantChange> {
    ledger.add_tenant_changes(&mut changes);
    for (tenant, _) in events {
        ledger::of_tenant(&mut changes, tenant).events += 1;
    }
    changes.retain(|_, change| *change != TenantChange::default());
    if !changes.is_empty() || replies != 0 {
        let mut all = TenantChange { replies, ..TenantChange::default() };
        changes.values().for_each(|change| all += change);
        changes.insert(Tenant::from_stored(ALL_TENANTS.to_owned()), all);
    }
    changes
}

fn records_of<'a>(jobs: &'a [Job], answers: &'a [Option<Answer>], now: Timestamp, ttl_ms: i64) -> Vec<NewRecord<'a>> {
    let answered = jobs.iter().zip(answers).filter_map(|(job, answer)| Some((&job.request, answer.as_ref()?)));
    idempotency::records(answered, now, ttl_ms)
}

/// How many rows each owner gains in the tables that are capped, for the janitor.
fn record_counts<'a>(records: &[NewRecord<'a>], events: &'a [(Tenant, Event)]) -> Vec<Change<'a>> {
    let mut counts: BTreeMap<(Kind, &str), i64> = BTreeMap::new();
    for record in records {
        *counts.entry((Kind::CallerReplies, &record.id.caller)).or_default() += 1;
    }
    for (tenant, _) in events {
        *counts.entry((Kind::TenantEvents, tenant.as_str())).or_default() += 1;
    }
    counts.into_iter().map(|((kind, owner), change)| Change { kind, owner, change }).collect()
}

/// Puts all answers in the jobs' order, and gives each twin its share.
fn gather(jobs: &[Job], verdicts: Vec<Verdict>, mut answers: Vec<Option<Answer>>) -> Vec<Option<Answer>> {
    answers.resize(jobs.len(), None);
    for (place, verdict) in verdicts.into_iter().enumerate() {
        match verdict {
            Verdict::Answered(answer) => answers[place] = Some(answer),
            // A leader stands before its twins, so its own answer is already in place.
            Verdict::Ride { leader } => {
                answers[place] = answers[leader]
                    .as_ref()
                    .and_then(|outcome| idempotency::ride(&jobs[place].request, &jobs[leader].request, outcome));
            }
            Verdict::Run | Verdict::RunAnew => {}
        }
    }
    answers
}
