//! Floor 2: every change of billing state. A [`Command`] says what is wanted; the committer runs it, together with all
//! others that wait, in one transaction: recall or read, decide, write. Nothing is answered before it is committed.

mod administer;
mod apply;
mod batch;
mod change_service;
pub mod committer;
mod delete_service;
mod idempotency;
mod in_flight;
mod job;
mod ledger;
mod manage_api_key;
mod manage_webhook;
mod memory;
mod outbox;
mod queue;
mod record_usage;
mod register_service;
mod register_services;
pub mod reply;
mod reset_usage;
mod settle;
mod switch_service;
mod unpriced;
mod work;
mod worker;

use std::time::Instant;

use crate::domain::caller::Tenant;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::limits::Limit;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::service::{PricedService, Registration, ServiceEdit};
use crate::domain::usage::{Pair, UsageRecord};
use crate::domain::webhook;
use crate::store::idempotency::CallerKey;

pub use committer::Committer;
pub use reply::{Answer, Reply};

/// The shapes of the answers to writes, for the API's document.
pub mod answers {
    pub use super::administer::Answer as Reset;
    pub use super::manage_api_key::Created as CreatedApiKey;
    pub use super::manage_webhook::Created as CreatedWebhook;
    pub use super::record_usage::{BulkRecorded, Recorded};
    pub use super::register_service::Registered;
    pub use super::register_services::Results;
    pub use super::reset_usage::Cleared;
    pub use super::settle::{AgentSettled, Settled};
    pub use super::switch_service::Switched;
}

/// A change of billing state.
#[derive(Clone, Debug)]
pub enum Command {
    RecordUsage(UsageRecord),
    /// An item that is no valid record is answered `invalid_item` in its place.
    RecordUsageBulk(Vec<Option<UsageRecord>>),
    Settle(Pair),
    SettleAgent(AgentId),
    /// Clears what is outstanding, without billing it.
    ResetUsage(Pair),
    RegisterService(Registration),
    /// An item that is no valid registration is answered `invalid_item` in its place.
    RegisterServices(Vec<Option<PricedService>>),
    /// A service that is not registered is refused before what is wrong with the edit.
    ChangeService {
        service_id: ServiceId,
        edit: Result<ServiceEdit, Refusal>,
    },
    DeleteService(ServiceId),
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
    CreateWebhook {
        url: String,
        events: Vec<String>,
    },
    ChangeWebhook {
        id: String,
        change: webhook::Change,
    },
    DeleteWebhook {
        id: String,
    },
    /// Records the test. Whoever submits it makes the attempt.
    TestWebhook {
        id: String,
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
    /// Whether it is applied in memory, together with all others of its batch. The rare commands are not: each runs
    /// statements of its own, in a transaction.
    fn is_set_wise(&self) -> bool {
        matches!(
            self,
            Self::RecordUsage(_)
                | Self::RecordUsageBulk(_)
                | Self::Settle(_)
                | Self::SettleAgent(_)
                | Self::ResetUsage(_)
                | Self::Refuse(_)
        )
    }

    /// How much of a batch it takes: about the rows that it writes of its own.
    fn rows(&self) -> usize {
        match self {
            Self::RecordUsageBulk(items) => items.len().max(1),
            Self::RegisterServices(items) => items.len().max(1),
            _ => 1,
        }
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
