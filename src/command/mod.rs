//! Floor 2: every change of billing state. A [`Command`] says what is wanted; the committer runs it, together with all
//! others that wait, in one transaction: recall, apply, remember, COMMIT. Nothing is answered before that.

mod administer;
mod batch;
pub mod committer;
mod idempotency;
mod in_flight;
mod job;
mod manage_api_key;
mod record_usage;
mod register_service;
pub mod reply;
mod settle;
mod switch_service;
mod work;
mod worker;

use std::time::Instant;

use crate::domain::caller::Tenant;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::limits::Limit;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::service::Registration;
use crate::domain::usage::{Pair, UsageRecord};
use crate::store::idempotency::CallerKey;

pub use committer::Committer;
pub use reply::{Answer, Reply};

/// A change of billing state.
#[derive(Clone, Debug)]
pub enum Command {
    RecordUsage(UsageRecord),
    /// An item that is no valid record is answered `invalid_item` in its place.
    RecordUsageBulk(Vec<Option<UsageRecord>>),
    Settle(Pair),
    SettleAgent(AgentId),
    RegisterService(Registration),
    SwitchService {
        service_id: ServiceId,
        disabled: bool,
    },
    CreateApiKey {
        label: String,
        tenant_id: Option<String>,
    },
    RevokeApiKey {
        prefix: String,
    },
    SetPaused(bool),
    ChangeLimits(Vec<(Limit, i64)>),
    /// Deletes everything; with it is told how many callers the limiter remembered.
    Reset {
        rate_buckets: u64,
    },
    /// Nothing but the refusal of an invalid request, to be kept under its key.
    Refuse(Refusal),
}

impl Command {
    fn records_usage(&self) -> bool {
        matches!(self, Self::RecordUsage(_) | Self::RecordUsageBulk(_))
    }

    /// Shares its transaction with no other command.
    fn runs_alone(&self) -> bool {
        matches!(self, Self::Reset { .. })
    }
}

/// A write as it arrived: the command, and what its answer and its record need to know.
#[derive(Clone, Debug)]
pub struct Request {
    pub tenant: Tenant,
    pub keyed: Option<Keyed>,
    pub method: &'static str,
    /// As sent, without query.
    pub path: String,
    pub request_id: String,
    pub deadline: Instant,
    pub command: Command,
}

/// The idempotency key of a request, and what the request is.
#[derive(Clone, Debug)]
pub struct Keyed {
    pub id: CallerKey,
    pub fingerprint: Fingerprint,
}
