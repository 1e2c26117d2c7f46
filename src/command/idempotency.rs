//! The judgement on each request of a batch: is it new, a repeat, a conflict, or a twin of one in the same batch?

use std::collections::HashMap;

use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::idempotency::{CallerKey, NewRecord, StoredReply};

use super::job::Job;
use super::work::Outcome;
use super::{Answer, Keyed, Reply, Request};

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
    let mut stored = stored.into_iter();
    let mut verdicts = Vec::with_capacity(jobs.len());
    for (place, job) in jobs.iter().enumerate() {
        let Some(keyed) = &job.request.keyed else {
            verdicts.push(Verdict::Run);
            continue;
        };
        let record = stored.next().flatten();
        verdicts.push(match record {
            Some(record) if record.expires_at > now => Verdict::Answered(recall(job, keyed, record)),
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

fn recall(job: &Job, keyed: &Keyed, record: StoredReply) -> Answer {
    if record.fingerprint != keyed.fingerprint {
        return Answer::Refused(Refusal::KeyConflict);
    }
    let is_ours = job.unsettled == Some(record.expires_at);
    let reply = Reply { status: record.status, body: record.response.map(Into::into) };
    if is_ours { Answer::Fresh(reply) } else { Answer::Replayed(reply) }
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
                path: &request.path,
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
