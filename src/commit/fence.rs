//! Refuses requests of tenants that do not live in this cell. A batch may rely on cached terms: then the write compares
//! their revision, and a stored response is returned only if its tenant lived here when it was read.

use crate::command::Answer;
use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::refusal::Refusal;
use crate::store::commit::Known;
use crate::store::{Conflict, StoreError};

use super::dedup::Dedup;
use super::job::Job;
use super::plan::Plan;

/// The tenants of the batch that do not live here. Fails with a conflict if one has left since its terms were read.
pub fn away<'a>(jobs: &[Job], plan: &Plan<'a>, known: &Known) -> Result<Vec<(&'a Tenant, Residence)>, StoreError> {
    let residences = plan.tenants.iter().zip(&known.tenants).map(|(tenant, terms)| (*tenant, terms.residence));
    let away: Vec<(&Tenant, Residence)> = residences.filter(|(_, residence)| !residence.executes()).collect();
    let keyed = jobs.iter().filter(|job| job.request.keyed.is_some());
    let has_left = keyed.zip(&known.responses).any(|(job, response)| {
        response.as_ref().is_some_and(|response| !response.residence.executes()) && find(&away, job).is_none()
    });
    if has_left { Err(StoreError::Conflict(Conflict::Terms)) } else { Ok(away) }
}

/// Refuses the requests of these tenants, whatever was decided about them.
pub fn refuse(jobs: &[Job], away: &[(&Tenant, Residence)], decisions: &mut [Dedup]) {
    if away.is_empty() {
        return;
    }
    for (job, decision) in jobs.iter().zip(decisions) {
        if let Some(residence) = find(away, job) {
            *decision = Dedup::Answered(refusal(job, residence));
        }
    }
}

fn find(away: &[(&Tenant, Residence)], job: &Job) -> Option<Residence> {
    away.iter().find(|(tenant, _)| **tenant == job.request.tenant).map(|(_, residence)| *residence)
}

/// The answer to a request of a tenant that does not live here. The effect of a commit in doubt may have moved with the
/// tenant.
pub fn refusal(job: &Job, residence: Residence) -> Answer {
    Answer::Refused(match residence {
        _ if job.in_doubt.is_some() => Refusal::OutcomeUnknown,
        Residence::Here | Residence::Departing | Residence::Leaving => Refusal::TenantMoving,
        Residence::Elsewhere => Refusal::TenantElsewhere,
    })
}
