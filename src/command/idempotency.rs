//! The judgement on each request of a batch: is it new, a repeat, a conflict, or a twin of one in the same batch?

use std::collections::{HashMap, HashSet};

use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::idempotency::{CallerKey, NewRecord, StoredReply};

use super::job::Job;
use super::work::Outcome;
use super::{Answer, Keyed, Reply, Request};

/// Longest path in bytes that a record keeps.
const STORED_PATH_MAX: usize = 1024;

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its key is new, or it has none.
    Run,
    /// Its key's record has expired: run it, and replace the record.
    RunAnew,
    /// Its key is recorded: this is the answer, and nothing changes.
    Answered(Answer),
    /// Its key is that of an earlier request of this batch, whose fate it shares.
    Ride { leader: usize },
}

impl Verdict {
    pub fn runs(&self) -> bool {
        matches!(self, Self::Run | Self::RunAnew)
    }
}

/// One verdict for each job; `stored` has one entry for each keyed job, in order.
pub fn judge(jobs: &[Job], stored: Vec<Option<StoredReply>>, now: Timestamp) -> Vec<Verdict> {
    let mut leaders: HashMap<&CallerKey, usize> = HashMap::new();
    let mut first_answers: HashSet<&CallerKey> = HashSet::new();
    let mut stored = stored.into_iter();
    let mut verdicts = Vec::with_capacity(jobs.len());
    for (place, job) in jobs.iter().enumerate() {
        let Some(keyed) = &job.request.keyed else {
            verdicts.push(Verdict::Run);
            continue;
        };
        let record = stored.next().flatten();
        verdicts.push(match record {
            // What this request left by a COMMIT in doubt is its answer, however long it took to find out.
            Some(record) if record.expires_at > now || job.unsettled == Some(record.expires_at) => {
                let is_ours = job.unsettled == Some(record.expires_at);
                let answer = recall(keyed, record);
                Verdict::Answered(match answer {
                    // Of twins in one interrupted batch only the first was executed.
                    Answer::Replayed(reply) if is_ours && first_answers.insert(&keyed.id) => Answer::Fresh(reply),
                    answer => answer,
                })
            }
            // It may have been executed, and its record be expired and gone.
            _ if job.unsettled.is_some_and(|expiry| expiry <= now) => {
                Verdict::Answered(Answer::Refused(Refusal::OutcomeUnknown))
            }
            expired => match leaders.get(&keyed.id) {
                Some(leader) => Verdict::Ride { leader: *leader },
                None => {
                    leaders.insert(&keyed.id, place);
                    if expired.is_some() { Verdict::RunAnew } else { Verdict::Run }
                }
            },
        });
    }
    verdicts
}

fn recall(keyed: &Keyed, record: StoredReply) -> Answer {
    if record.fingerprint != keyed.fingerprint {
        return Answer::Refused(Refusal::KeyConflict);
    }
    Answer::Replayed(Reply { status: record.status, body: record.response.map(Into::into) })
}

/// What a twin gets, now that its leader's answer is known. None: the leader left no record, so the twin has to run.
pub fn ride(twin: &Request, leader: &Request, outcome: &Answer) -> Option<Answer> {
    let Answer::Fresh(reply) = outcome else { return None };
    let fingerprint = |request: &Request| request.keyed.as_ref().map(|keyed| keyed.fingerprint);
    Some(if fingerprint(twin) == fingerprint(leader) {
        Answer::Replayed(reply.clone())
    } else {
        Answer::Refused(Refusal::KeyConflict)
    })
}

/// What is answered to a request that ran. [`Answer::Fresh`] is what gets a record if the request has a key.
pub fn answer(request: &Request, outcome: Outcome) -> Answer {
    match outcome {
        Ok(reply) => Answer::Fresh(reply),
        Err(refusal) if request.keyed.is_some() && refusal.is_stored() => {
            Answer::Fresh(Reply::refusal(&refusal, request.method, &request.path, &request.request_id))
        }
        Err(refusal) => Answer::Refused(refusal),
    }
}

/// The records of the keyed requests, in sorted order: whoever stores the same keys meanwhile waits, and no two wait for
/// each other.
pub fn records<'a>(
    answered: impl Iterator<Item = (&'a Request, &'a Answer)>,
    now: Timestamp,
    ttl_ms: i64,
) -> Vec<NewRecord<'a>> {
    let mut records: Vec<NewRecord<'_>> = answered
        .filter_map(|(request, answer)| {
            let (Some(keyed), Answer::Fresh(reply)) = (&request.keyed, answer) else { return None };
            Some(NewRecord {
                id: &keyed.id,
                method: request.method,
                path: stored_path(&request.path),
                fingerprint: keyed.fingerprint,
                status: reply.status,
                response: reply.body.as_deref().map(|body| std::str::from_utf8(body).expect("replies are JSON")),
                request_id: &request.request_id,
                expires_at: now.plus_ms(ttl_ms),
            })
        })
        .collect();
    records.sort_unstable_by_key(|record| record.id);
    records
}

/// As much of a path as is kept. A valid one is shorter.
fn stored_path(path: &str) -> &str {
    &path[..path.floor_char_boundary(STORED_PATH_MAX)]
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::command::Command;
    use crate::domain::caller::Tenant;
    use crate::domain::fingerprint::Fingerprint;

    use super::*;

    /// Requests with one key, all in doubt about the same COMMIT.
    fn twins(expiry: Timestamp, fingerprints: &[u8]) -> Vec<Job> {
        let job = |fingerprint: &u8| {
            let id = CallerKey { caller: "ip:192.0.2.1".into(), key: "k".into() };
            let request = Request {
                tenant: Tenant::public(),
                keyed: Some(Keyed { id, fingerprint: Fingerprint([*fingerprint; 32]) }),
                method: "POST",
                path: "/".into(),
                request_id: "r".into(),
                deadline: Instant::now(),
                command: Command::Refuse(Refusal::Internal),
            };
            let (mut job, _) = Job::new(request, None);
            job.unsettled = Some(expiry);
            job
        };
        fingerprints.iter().map(job).collect()
    }

    fn stored(expires_at: Timestamp) -> Option<StoredReply> {
        Some(StoredReply { fingerprint: Fingerprint([1; 32]), status: 200, response: None, expires_at })
    }

    #[test]
    fn of_twins_in_a_batch_whose_commit_went_unheard_only_the_first_was_executed() {
        let (now, expiry) = (Timestamp::from_ms(10), Timestamp::from_ms(20));
        let reply = Reply { status: 200, body: None };
        let fresh = Verdict::Answered(Answer::Fresh(reply.clone()));
        let replayed = Verdict::Answered(Answer::Replayed(reply));
        let conflict = Verdict::Answered(Answer::Refused(Refusal::KeyConflict));
        let jobs = twins(expiry, &[2, 1, 1]);
        assert_eq!(judge(&jobs, vec![stored(expiry); 3], now), [conflict.clone(), fresh, replayed.clone()]);
        // Somebody else's record.
        let other = stored(Timestamp::from_ms(21));
        assert_eq!(judge(&jobs, vec![other; 3], now), [conflict, replayed.clone(), replayed]);
    }

    #[test]
    fn a_commit_in_doubt_for_longer_than_its_record_lives_is_not_executed_again() {
        let (now, expiry) = (Timestamp::from_ms(20), Timestamp::from_ms(20));
        let jobs = twins(expiry, &[1]);
        let fresh = Verdict::Answered(Answer::Fresh(Reply { status: 200, body: None }));
        assert_eq!(judge(&jobs, vec![stored(expiry)], now), [fresh]);
        let unknown = Verdict::Answered(Answer::Refused(Refusal::OutcomeUnknown));
        assert_eq!(judge(&jobs, vec![None], now), std::slice::from_ref(&unknown));
        assert_eq!(judge(&jobs, vec![stored(Timestamp::from_ms(5))], now), [unknown]);
    }
}
