//! One attempt to commit a batch: recall, apply, remember, COMMIT. It answers nobody; the lane does, after it returned.

use std::collections::BTreeMap;
use std::time::Instant;

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::domain::limits::Limits;
use crate::domain::timestamp::Timestamp;
use crate::metrics;
use crate::store::idempotency::CallerKey;
use crate::store::record_counts::{self, Change, Kind};
use crate::store::server::{self, Patience};
use crate::store::{StoreError, idempotency as records};

use super::idempotency::{self, Verdict};
use super::job::Job;
use super::work::{Numbered, Outcome, Work};
use super::{Answer, Command, administer, manage_api_key, record_usage, register_service, settle, switch_service};

/// How far an attempt got: what a failure means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Apply,
    Remember,
    Commit,
}

/// Why an attempt changed nothing, or in [`Phase::Commit`] perhaps something.
#[derive(Debug, thiserror::Error)]
pub enum Setback {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A handler gave up while the batch ran. Without that job it can run again.
    #[error("a request was withdrawn")]
    Withdrawn,
}

/// What an attempt is told.
pub struct Attempt<'a> {
    pub now: Timestamp,
    pub limits: Limits,
    pub ttl_ms: i64,
    /// Which of a tenant's rows of totals this lane uses.
    pub shard: i16,
    pub patience: Patience,
    pub dice: &'a mut StdRng,
    pub phase: &'a mut Phase,
}

impl Attempt<'_> {
    /// One answer for each job, committed. None for a twin whose leader left no record: it has to run in a later batch.
    pub async fn run(self, connection: &mut PgConnection, jobs: &[Job]) -> Result<Vec<Option<Answer>>, Setback> {
        *self.phase = Phase::Apply;
        let verdicts = recall(connection, jobs, self.now).await?;
        if !verdicts.iter().any(Verdict::runs) {
            return Ok(gather(jobs, verdicts, Vec::new()));
        }
        let began = Instant::now();
        let mut transaction = server::begin_commit(connection, self.patience).await?;
        let phase = &mut *self.phase;
        let mut work = Work::new(&mut transaction, self.now, self.limits, self.dice);
        let outcome = execute(&mut work, jobs, &verdicts, self.ttl_ms, self.shard, phase).await;
        let outcome = match outcome {
            Ok(answers) if jobs.iter().all(Job::begin_commit) => Ok(answers),
            Ok(_) => Err(Setback::Withdrawn),
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(answers) => {
                *phase = Phase::Commit;
                transaction.commit().await.map_err(StoreError::from)?;
                metrics::committed(verdicts.iter().filter(|verdict| verdict.runs()).count(), began.elapsed());
                Ok(gather(jobs, verdicts, answers))
            }
            Err(setback) => {
                // At once, because an idle lane must not keep rows locked. A connection that cannot even do that is
                // broken, which its next use finds out.
                let _ = transaction.rollback().await;
                Err(setback)
            }
        }
    }
}

/// Looks up all keys before the transaction begins: the unique index judges again at the end, so nothing rests on
/// this being the latest state, and a batch of nothing but repeats needs no transaction at all.
async fn recall(connection: &mut PgConnection, jobs: &[Job], now: Timestamp) -> Result<Vec<Verdict>, StoreError> {
    let wanted: Vec<&CallerKey> =
        jobs.iter().filter_map(|job| job.request.keyed.as_ref()).map(|keyed| &keyed.id).collect();
    let stored = if wanted.is_empty() { Vec::new() } else { records::recall(connection, &wanted).await? };
    Ok(idempotency::judge(jobs, stored, now))
}

/// Everything between BEGIN and COMMIT. Returns what each running job is answered.
async fn execute(
    work: &mut Work<'_>,
    jobs: &[Job],
    verdicts: &[Verdict],
    ttl_ms: i64,
    shard: i16,
    phase: &mut Phase,
) -> Result<Vec<Option<Answer>>, StoreError> {
    let running: Vec<Numbered<'_>> = jobs
        .iter()
        .enumerate()
        .filter(|(place, _)| verdicts[*place].runs())
        .map(|(place, job)| (place, &job.request))
        .collect();
    let outcomes = apply(work, &running, jobs.len()).await?;
    let answers: Vec<Option<Answer>> = outcomes
        .into_iter()
        .zip(jobs)
        .map(|(outcome, job)| Some(idempotency::answer(&job.request, outcome?)))
        .collect();
    work.write(shard).await?;

    *phase = Phase::Remember;
    // After the counters: whoever replaces the same record waits here, as everybody does.
    let replaced = records::remove_expired(work.connection, &expired_keys(jobs, verdicts), work.now).await?;
    let answered = jobs.iter().zip(&answers).filter_map(|(job, answer)| Some((&job.request, answer.as_ref()?)));
    let remembered = idempotency::remember(work.connection, answered, work.now, ttl_ms).await?;
    count(work, &remembered, &replaced).await?;
    Ok(answers)
}

/// Applies the commands: usage first, set-wise; then settlements, set-wise; then the rare ones, one by one as they came.
async fn apply(work: &mut Work<'_>, running: &[Numbered<'_>], jobs: usize) -> Result<Vec<Option<Outcome>>, StoreError> {
    let mut outcomes = vec![None; jobs];
    let usage: Vec<Numbered<'_>> =
        running.iter().copied().filter(|(_, request)| request.command.records_usage()).collect();
    let bills = settle::find_pairs(work, running).await?;
    if !bills.is_empty() {
        settle::lock(work, &bills, record_usage::counters(&usage)).await?;
    }
    if !usage.is_empty() {
        record_usage::apply(work, &usage, &mut outcomes).await?;
    }
    if !bills.is_empty() {
        settle::apply(work, running, &bills, &mut outcomes).await?;
    }
    for (place, request) in running {
        outcomes[*place] = Some(match &request.command {
            Command::RecordUsage(_) | Command::RecordUsageBulk(_) | Command::Settle(_) | Command::SettleAgent(_) => {
                continue;
            }
            Command::RegisterService(registration) => register_service::apply(work, request, registration).await?,
            Command::SwitchService { service_id, disabled } => {
                switch_service::apply(work, request, service_id, *disabled).await?
            }
            Command::CreateApiKey { label, tenant_id } => {
                manage_api_key::create(work, label, tenant_id.as_deref()).await?
            }
            Command::RevokeApiKey { prefix } => manage_api_key::revoke(work, prefix).await?,
            Command::SetPaused(paused) => administer::set_paused(work, *paused).await?,
            Command::ChangeLimits(changes) => administer::change_limits(work, changes).await?,
            Command::Reset { rate_buckets } => administer::reset(work, *rate_buckets).await?,
            Command::Refuse(refusal) => Err(refusal.clone()),
        });
    }
    Ok(outcomes)
}

/// The keys whose expired record is about to be replaced, sorted.
fn expired_keys<'a>(jobs: &'a [Job], verdicts: &[Verdict]) -> Vec<&'a CallerKey> {
    let mut keys: Vec<&CallerKey> = jobs
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| **verdict == Verdict::RunAnew)
        .filter_map(|(job, _)| Some(&job.request.keyed.as_ref()?.id))
        .collect();
    keys.sort_unstable();
    keys
}

/// Notes for the janitor how many rows each owner gained in the tables that are capped.
async fn count(work: &mut Work<'_>, remembered: &[&CallerKey], replaced: &[&CallerKey]) -> Result<(), StoreError> {
    let mut replies: BTreeMap<&str, i64> = BTreeMap::new();
    for id in remembered {
        *replies.entry(&id.caller).or_default() += 1;
    }
    for id in replaced {
        *replies.entry(&id.caller).or_default() -= 1;
    }
    let events = Work::events_by_tenant(&work.events);
    let changes: Vec<Change<'_>> = replies
        .into_iter()
        .map(|(owner, change)| Change { kind: Kind::CallerReplies, owner, change })
        .chain(events.into_iter().map(|(tenant, change)| Change {
            kind: Kind::TenantEvents,
            owner: tenant.as_str(),
            change,
        }))
        .filter(|change| change.change != 0)
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    record_counts::append(work.connection, &changes).await
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
