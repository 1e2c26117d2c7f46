//! One attempt to commit a transactional command: look up the key, run the statements, store the response, commit.

use std::collections::HashSet;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::command::context::{Effects, Stop, TransactionContext};
use crate::command::{Request, TransactionalCommand};
use crate::domain::caller::Tenant;
use crate::domain::keyring::Keyring;
use crate::store::audit_log;
use crate::store::commit::{self, Changes, Wanted};
use crate::store::delivery_queue::{self, Test};
use crate::store::positions::{self, CommitNumbers, Numbered};
use crate::store::server::CommitTransaction;
use crate::store::tenants;

use super::attempt::{AttemptError, AttemptState, Done, Executed, Phase, Settings, draw_attempt_id};
use super::dedup::{self, Dedup};
use super::effects::{self, StoredEvents, Sums};
use super::fence;
use super::job::Job;

pub struct TransactionAttempt<'a> {
    pub settings: Settings,
    pub rng: &'a mut StdRng,
    pub state: &'a AttemptState,
    /// Time limit of a command during which no other commit may run.
    pub exclusive: Option<Duration>,
    /// Callers that may not create idempotency records.
    pub full: &'a HashSet<String>,
    pub keyring: &'a Keyring,
}

impl TransactionAttempt<'_> {
    /// `job` contains `command`. Leaves `transaction` open after an error, and if nothing had to be written.
    pub async fn run(
        self,
        transaction: &mut CommitTransaction<'_>,
        job: &Job,
        command: &TransactionalCommand,
    ) -> Result<Done, AttemptError> {
        let Settings { now, limits, ttl_ms, shard, locking, dialect, .. } = self.settings;
        let jobs = std::slice::from_ref(job);
        let tenant = &job.request.tenant;
        transaction.begin(dialect, locking.lock_timeout(), self.exclusive).await?;
        let connection = transaction.connection();
        // Locked, so that the tenant's terms and counts stay as they are read.
        if command.is_of_tenant() {
            tenants::lock(connection, tenant).await?;
        }
        let wanted = Wanted {
            keys: job.request.keyed.iter().map(|keyed| &*keyed.id).collect(),
            tenants: vec![tenant],
            ..Wanted::default()
        };
        let known = commit::lookup(connection, &wanted).await?;
        // The tenant's row is locked, so this remains true until the commit.
        let residence = known.tenants[0].residence;
        if command.is_of_tenant() && !residence.executes() {
            return Ok(Done { answers: vec![Some(fence::refusal(job, residence))], ..Done::default() });
        }
        let dedup = dedup::dedup(jobs, known.responses, now, self.full).remove(0);
        if let Dedup::Answered(answer) = dedup {
            return Ok(Done { answers: vec![Some(answer)], ..Done::default() });
        }
        let mut context = TransactionContext {
            connection,
            dialect,
            now,
            limits,
            rng: &mut *self.rng,
            keyring: self.keyring,
            changed_terms: Vec::new(),
            webhook_test: None,
            changes: Vec::new(),
            effects: Effects::default(),
        };
        let outcome = match command.apply(&mut context, &job.request).await {
            Ok(reply) => Ok(reply),
            Err(Stop::Refuse(refusal)) => Err(refusal),
            Err(Stop::Fault(error)) => return Err(error.into()),
        };
        let TransactionContext { changed_terms, webhook_test, changes: audited, effects, .. } = context;
        let connection = transaction.connection();
        if !audited.is_empty() {
            let Request { origin, request_id, .. } = &*job.request;
            audit_log::append(connection, origin, Some(request_id), now, &audited).await?;
        }
        let answer = dedup::answer(&job.request, outcome);

        let listening: Vec<&Tenant> =
            if known.tenants[0].has_webhooks && webhook_test.is_none() { vec![tenant] } else { Vec::new() };
        let causes = vec![job.request.trace.as_deref(); effects.events.len()];
        let mut events = StoredEvents::of(&effects.events, &causes);
        if events.runs() > 0 && (dialect.is_citus() || webhook_test.is_some() || events.is_of_any(&listening)) {
            events.set_positions(&positions::draw(connection, dialect, Numbered::EventRuns, events.runs()).await?);
        }
        if let (Some(test), Some((position, payload))) = (&webhook_test, events.first()) {
            let trace = job.request.trace.as_ref().map(|trace| trace.context());
            let test = Test { tenant, webhook: &test.webhook, id: &test.delivery, position, payload, trace };
            delivery_queue::insert_test(connection, &test, now).await?;
        }
        for tenant in &changed_terms {
            tenants::renew_terms(connection, tenant, self.rng.random()).await?;
        }
        let attempt_id = draw_attempt_id(self.rng);
        let (totals, rare_totals) = effects::totals(&effects, &Sums::new());
        let keys = dedup::records(std::iter::once((&*job.request, &answer)));
        let changes = Changes {
            attempt_id,
            now,
            expires_at: now.plus_ms(ttl_ms),
            shard,
            counters: Vec::new(),
            new_pairs: Vec::new(),
            numbers: CommitNumbers::default(),
            totals,
            rare_totals,
            callers: effects::callers(&keys),
            settlements: &[],
            event_runs: events.rows(),
            outbox: events.outbox(&listening),
            keys,
            expired: if dedup == Dedup::Replace { wanted.keys } else { Vec::new() },
            terms: Vec::new(),
        };
        self.state.set(Phase::Write);
        commit::write(connection, dialect, &changes).await?;
        let has_outbox = !changes.outbox.is_empty();
        let expires_at = changes.expires_at;
        drop(changes);
        self.state.claim(jobs, Executed { attempt_id, expires_at, jobs: vec![true] })?;
        transaction.commit().await?;
        Ok(Done { answers: vec![Some(answer)], executed: 1, has_outbox, ..Done::default() })
    }
}
