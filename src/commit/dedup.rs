//! Step 3 of a batch: classifies each request as new, replay, conflict, or duplicate of another one in the batch.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::command::{Answer, Keyed, Reply, Request};
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::commit::NewIdempotencyKey;
use crate::store::idempotency::{CallerKey, StoredResponse};

use super::job::Job;

/// Maximum length in bytes of the path in a record.
const STORED_PATH_MAX: usize = 1024;

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// Its key is new, or it has none.
    Execute,
    /// The record of its key has expired. Execute it, and replace the record.
    Replace,
    /// This is the response. Nothing changes.
    Answered(Answer),
    /// An earlier request of this batch has the same key. Share its response.
    DuplicateOf(usize),
}

impl Dedup {
    pub fn executes(&self) -> bool {
        matches!(self, Self::Execute | Self::Replace)
    }
}

/// Returns one decision for each job. `stored` has one entry for each job with a key, in order. Callers in `full` may
/// not create records, so their requests with new keys are refused.
pub fn dedup(jobs: &[Job], stored: Vec<Option<StoredResponse>>, now: Timestamp, full: &HashSet<String>) -> Vec<Dedup> {
    let mut leaders: HashMap<&CallerKey, usize, RandomState> =
        HashMap::with_capacity_and_hasher(jobs.len(), RandomState::default());
    let mut stored = stored.into_iter();
    let mut decisions = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        let Some(keyed) = &job.request.keyed else {
            decisions.push(Dedup::Execute);
            continue;
        };
        let record = stored.next().flatten();
        let is_own = record.as_ref().is_some_and(|record| job.is_own_attempt(record.attempt_id));
        decisions.push(match record {
            // The request's own earlier COMMIT stored this record, so it is the response even if it has expired
            // meanwhile.
            Some(record) if record.expires_at > now || is_own => Dedup::Answered(answer_from(keyed, record, is_own)),
            // The request may have been executed, and its record may have been deleted after it expired.
            _ if job.in_doubt.as_ref().is_some_and(|doubt| doubt.expires_at <= now) => {
                Dedup::Answered(Answer::Refused(Refusal::OutcomeUnknown))
            }
            _ if full.contains(&keyed.id.caller) => Dedup::Answered(Answer::Refused(Refusal::TooManyRecords)),
            expired => match leaders.get(&*keyed.id) {
                Some(leader) => Dedup::DuplicateOf(*leader),
                None => {
                    leaders.insert(&keyed.id, index);
                    if expired.is_some() { Dedup::Replace } else { Dedup::Execute }
                }
            },
        });
    }
    decisions
}

/// `is_own`: the commit in doubt executed this very request, so the response is not a replay.
fn answer_from(keyed: &Keyed, record: StoredResponse, is_own: bool) -> Answer {
    if record.fingerprint != keyed.fingerprint {
        return Answer::Refused(Refusal::KeyConflict);
    }
    let reply = Reply { status: record.status, body: record.response.map(Into::into) };
    if is_own { Answer::Fresh(reply) } else { Answer::Replayed(reply) }
}

/// The answer for a duplicate, derived from that of its leader. `None` if the leader stored no response: the duplicate
/// must be executed.
pub fn share(duplicate: &Request, leader: &Request, outcome: &Answer) -> Option<Answer> {
    let Answer::Fresh(reply) = outcome else { return None };
    let fingerprint = |request: &Request| request.keyed.as_ref().map(|keyed| keyed.fingerprint);
    Some(if fingerprint(duplicate) == fingerprint(leader) {
        Answer::Replayed(reply.clone())
    } else {
        Answer::Refused(Refusal::KeyConflict)
    })
}

/// The answer for an executed request. [`Answer::Fresh`] is stored if the request has a key.
pub fn answer(request: &Request, outcome: Result<Reply, Refusal>) -> Answer {
    match outcome {
        Ok(reply) => Answer::Fresh(reply),
        Err(refusal) if request.keyed.is_some() && refusal.is_stored() => {
            Answer::Fresh(Reply::refusal(&refusal, request.method, &request.path, &request.request_id))
        }
        Err(refusal) => Answer::Refused(refusal),
    }
}

/// Whether an executed request stores no record under its key, so that the write would not notice an existing one.
pub fn leaves_no_record(request: &Request, answer: Option<&Answer>) -> bool {
    request.keyed.is_some() && matches!(answer, Some(Answer::Refused(_)))
}

/// The records to store, sorted by key: concurrent commits that store the same keys then wait in the same order.
pub fn records<'a>(answered: impl Iterator<Item = (&'a Request, &'a Answer)>) -> Vec<NewIdempotencyKey<'a>> {
    let mut records: Vec<NewIdempotencyKey<'_>> = answered
        .filter_map(|(request, answer)| {
            let (Some(keyed), Answer::Fresh(reply)) = (&request.keyed, answer) else { return None };
            Some(NewIdempotencyKey {
                caller: &keyed.id.caller,
                key: &keyed.id.key,
                method: request.method,
                path: stored_path(&request.path),
                request_hash: &keyed.fingerprint.0,
                status: reply.status.cast_signed(),
                response: reply.body.as_deref().map(|body| std::str::from_utf8(body).expect("replies are JSON")),
                request_id: &request.request_id,
            })
        })
        .collect();
    records.sort_unstable_by_key(|record| (record.key, record.caller));
    records
}

/// The part of a path that is stored. Valid paths are shorter than the limit.
fn stored_path(path: &str) -> &str {
    &path[..path.floor_char_boundary(STORED_PATH_MAX)]
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::command::BatchedCommand;
    use crate::commit::job::InDoubt;
    use crate::domain::audit_log::Origin;
    use crate::domain::caller::Tenant;
    use crate::domain::cell::Residence;
    use crate::domain::fingerprint::Fingerprint;

    use super::*;

    const ATTEMPT: i64 = 7;

    /// Requests with one key and these fingerprints. `attempt_id` is that of an earlier commit in doubt that executed
    /// the request.
    fn jobs(attempts: &[(u8, Option<i64>)], expires_at: Timestamp) -> Vec<Job> {
        let job = |(fingerprint, attempt_id): &(u8, Option<i64>)| {
            let id = CallerKey { caller: "ip:192.0.2.1".into(), key: "k".into() }.into();
            let request = Request {
                tenant: Tenant::public(),
                origin: Origin::CLI,
                keyed: Some(Keyed { id, fingerprint: Fingerprint([*fingerprint; 32]) }),
                method: "POST",
                path: "/".into(),
                request_id: "r".into(),
                trace: None,
                deadline: Instant::now(),
                command: BatchedCommand::Refuse(Refusal::Internal).into(),
            };
            let (mut job, _) = Job::new(request.into(), None);
            job.in_doubt = attempt_id.map(|attempt_id| InDoubt { attempt_ids: vec![attempt_id], expires_at });
            job
        };
        attempts.iter().map(job).collect()
    }

    fn stored(attempt_id: i64, expires_at: Timestamp) -> Option<StoredResponse> {
        let fingerprint = Fingerprint([1; 32]);
        let residence = Residence::Here;
        Some(StoredResponse { fingerprint, status: 200, response: None, attempt_id, expires_at, residence })
    }

    #[test]
    fn only_the_request_that_was_executed_gets_its_answer_as_the_first() {
        let (now, expiry, none) = (Timestamp::from_ms(10), Timestamp::from_ms(20), HashSet::new());
        let reply = Reply { status: 200, body: None };
        let fresh = Dedup::Answered(Answer::Fresh(reply.clone()));
        let replayed = Dedup::Answered(Answer::Replayed(reply));
        let conflict = Dedup::Answered(Answer::Refused(Refusal::KeyConflict));
        // The second was executed by the attempt in doubt. The third was its duplicate, and is not marked.
        let jobs = jobs(&[(2, None), (1, Some(ATTEMPT)), (1, None), (1, Some(8))], expiry);
        let own = dedup(&jobs, vec![stored(ATTEMPT, expiry); 4], now, &none);
        assert_eq!(own, [conflict.clone(), fresh, replayed.clone(), replayed.clone()]);
        let foreign = dedup(&jobs, vec![stored(9, expiry); 4], now, &none);
        assert_eq!(foreign, [conflict, replayed.clone(), replayed.clone(), replayed]);
    }

    #[test]
    fn a_commit_in_doubt_for_longer_than_its_record_lives_is_not_executed_again() {
        let (now, expiry, none) = (Timestamp::from_ms(20), Timestamp::from_ms(20), HashSet::new());
        let jobs = jobs(&[(1, Some(ATTEMPT))], expiry);
        let fresh = Dedup::Answered(Answer::Fresh(Reply { status: 200, body: None }));
        assert_eq!(dedup(&jobs, vec![stored(ATTEMPT, expiry)], now, &none), [fresh]);
        let unknown = Dedup::Answered(Answer::Refused(Refusal::OutcomeUnknown));
        assert_eq!(dedup(&jobs, vec![None], now, &none), std::slice::from_ref(&unknown));
        assert_eq!(dedup(&jobs, vec![stored(9, Timestamp::from_ms(5))], now, &none), [unknown]);
    }
}
