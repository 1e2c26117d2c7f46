//! Step 3 of a batch: is each request new, a repeat, a conflict, or a duplicate of one in the same batch?

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::command::{Answer, Keyed, Reply, Request};
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::commit::NewIdempotencyKey;
use crate::store::idempotency::{CallerKey, StoredResponse};

use super::job::Job;

/// Longest path in bytes that a record keeps.
const STORED_PATH_MAX: usize = 1024;

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// Its key is new, or it has none.
    Execute,
    /// The record of its key has expired: execute it, and replace the record.
    Replace,
    /// Its key has a record: this is the answer, and nothing changes.
    Answered(Answer),
    /// Its key is that of an earlier request of this batch, whose outcome it shares.
    DuplicateOf(usize),
}

impl Dedup {
    pub fn executes(&self) -> bool {
        matches!(self, Self::Execute | Self::Replace)
    }
}

/// One for each job; `stored` has one entry for each keyed job, in order. Callers that are `full` get no new record, so none
/// of their requests with a new key is executed.
pub fn dedup(jobs: &[Job], stored: Vec<Option<StoredResponse>>, now: Timestamp, full: &HashSet<String>) -> Vec<Dedup> {
    let mut leaders: HashMap<&CallerKey, usize, RandomState> = HashMap::default();
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
            // What this request stored by a COMMIT in doubt is its answer, however long it took to find out.
            Some(record) if record.expires_at > now || is_own => Dedup::Answered(answer_from(keyed, record, is_own)),
            // It may have been executed, and its record have expired and be gone.
            _ if job.in_doubt.as_ref().is_some_and(|doubt| doubt.expires_at <= now) => {
                Dedup::Answered(Answer::Refused(Refusal::OutcomeUnknown))
            }
            _ if full.contains(&keyed.id.caller) => Dedup::Answered(Answer::Refused(Refusal::TooManyRecords)),
            expired => match leaders.get(&keyed.id) {
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

/// `is_own`: the request itself was executed by the commit that stored this, so it is answered for the first time.
fn answer_from(keyed: &Keyed, record: StoredResponse, is_own: bool) -> Answer {
    if record.fingerprint != keyed.fingerprint {
        return Answer::Refused(Refusal::KeyConflict);
    }
    let reply = Reply { status: record.status, body: record.response.map(Into::into) };
    if is_own { Answer::Fresh(reply) } else { Answer::Replayed(reply) }
}

/// What a duplicate gets, now that its leader's answer is known. None: the leader left no record, so the duplicate has to
/// execute.
pub fn share(duplicate: &Request, leader: &Request, outcome: &Answer) -> Option<Answer> {
    let Answer::Fresh(reply) = outcome else { return None };
    let fingerprint = |request: &Request| request.keyed.as_ref().map(|keyed| keyed.fingerprint);
    Some(if fingerprint(duplicate) == fingerprint(leader) {
        Answer::Replayed(reply.clone())
    } else {
        Answer::Refused(Refusal::KeyConflict)
    })
}

/// What is answered to a request that was executed. [`Answer::Fresh`] is what gets a record if the request has a key.
pub fn answer(request: &Request, outcome: Result<Reply, Refusal>) -> Answer {
    match outcome {
        Ok(reply) => Answer::Fresh(reply),
        Err(refusal) if request.keyed.is_some() && refusal.is_stored() => {
            Answer::Fresh(Reply::refusal(&refusal, request.method, &request.path, &request.request_id))
        }
        Err(refusal) => Answer::Refused(refusal),
    }
}

/// Whether the key of a request that was executed gets no record, so that the write would not notice an earlier one.
pub fn leaves_no_record(request: &Request, answer: Option<&Answer>) -> bool {
    request.keyed.is_some() && matches!(answer, Some(Answer::Refused(_)))
}

/// The records of the keyed requests, sorted by key: commits that store the same keys wait for each other in one order.
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

/// As much of a path as is kept. A valid one is shorter.
fn stored_path(path: &str) -> &str {
    &path[..path.floor_char_boundary(STORED_PATH_MAX)]
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::command::BatchedCommand;
    use crate::commit::job::InDoubt;
    use crate::domain::caller::Tenant;
    use crate::domain::fingerprint::Fingerprint;

    use super::*;

    const ATTEMPT: i64 = 7;

    /// Requests with one key and these fingerprints. The commit of `attempt`, if any, was to store one under it.
    fn jobs(attempts: &[(u8, Option<i64>)], expires_at: Timestamp) -> Vec<Job> {
        let job = |(fingerprint, attempt_id): &(u8, Option<i64>)| {
            let id = CallerKey { caller: "ip:192.0.2.1".into(), key: "k".into() };
            let request = Request {
                tenant: Tenant::public(),
                keyed: Some(Keyed { id, fingerprint: Fingerprint([*fingerprint; 32]) }),
                method: "POST",
                path: "/".into(),
                request_id: "r".into(),
                deadline: Instant::now(),
                command: BatchedCommand::Refuse(Refusal::Internal).into(),
            };
            let (mut job, _) = Job::new(request, None);
            job.in_doubt = attempt_id.map(|attempt_id| InDoubt { attempt_ids: vec![attempt_id], expires_at });
            job
        };
        attempts.iter().map(job).collect()
    }

    fn stored(attempt_id: i64, expires_at: Timestamp) -> Option<StoredResponse> {
        let fingerprint = Fingerprint([1; 32]);
        Some(StoredResponse { fingerprint, status: 200, response: None, attempt_id, expires_at })
    }

    #[test]
    fn only_the_request_that_was_executed_gets_its_answer_as_the_first() {
        let (now, expiry, none) = (Timestamp::from_ms(10), Timestamp::from_ms(20), HashSet::new());
        let reply = Reply { status: 200, body: None };
        let fresh = Dedup::Answered(Answer::Fresh(reply.clone()));
        let replayed = Dedup::Answered(Answer::Replayed(reply));
        let conflict = Dedup::Answered(Answer::Refused(Refusal::KeyConflict));
        // The second was executed by the attempt in doubt; the third was its duplicate, and is not marked.
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
