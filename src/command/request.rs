//! A write request, and the change of billing state that it requests.

use std::sync::Arc;
use std::time::Instant;

use crate::domain::api_key::KeyLimits;
use crate::domain::audit_log::Origin;
use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::runtime_config::Limit;
use crate::domain::service::{PricedService, Registration, ServiceEdit};
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::{Pair, UsageRecord};
use crate::domain::webhook;
use crate::store::idempotency::CallerKey;
use crate::store::redeliveries::Resend;
use crate::telemetry::traces::RequestTrace;

/// A change of billing state.
#[derive(Clone, Debug)]
pub enum Command {
    Batched(BatchedCommand),
    Transactional(TransactionalCommand),
}

/// Commits together with all other waiting commands.
#[derive(Clone, Debug)]
pub enum BatchedCommand {
    RecordUsage(UsageRecord),
    /// An item that is not valid becomes `invalid_item` at its index.
    RecordUsageBulk(Vec<Option<UsageRecord>>),
    Settle(Pair),
    SettleAgent(AgentId),
    /// Clears outstanding usage without billing it.
    ResetUsage(Pair),
    /// Stores the refusal of an invalid request under its key.
    Refuse(Refusal),
}

/// Runs in its own transaction.
#[derive(Clone, Debug)]
pub enum TransactionalCommand {
    RegisterService(Registration),
    /// An item that is not valid becomes `invalid_item` at its index.
    RegisterServices(Vec<Option<PricedService>>),
    /// The edit may be invalid. A service that is not registered is reported first.
    ChangeService {
        service_id: ServiceId,
        edit: Result<ServiceEdit, Refusal>,
    },
    DeleteService(ServiceId),
    SetServiceEnabled {
        service_id: ServiceId,
        enabled: bool,
    },
    CreateApiKey {
        label: String,
        tenant: TenantOfKey,
        limits: KeyLimits,
    },
    /// Without `expires_at` the new key lives as long as the old one was to live.
    RotateApiKey {
        prefix: String,
        overlap_ms: i64,
        expires_at: Option<Timestamp>,
    },
    /// Creates a key that its owner drew, for a new tenant.
    ImportApiKey {
        label: String,
        prefix: String,
        hash: [u8; 32],
    },
    /// Undoes a rotation whose new key could not be shown.
    CancelKeyRotation {
        prefix: String,
        replacement: String,
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
    RotateWebhookSecret {
        id: String,
        overlap_ms: i64,
    },
    DeleteWebhook {
        id: String,
    },
    /// Records the test. The handler then makes the attempt.
    TestWebhook {
        id: String,
    },
    /// Sends finished deliveries again, of which there may be more than one command takes.
    ResendDeliveries {
        webhook: String,
        which: Resend,
    },
    /// Delivers events that the webhook was not sent while it was disabled.
    RequestMissedEvents {
        webhook: String,
        since: Timestamp,
    },
    SetPaused(bool),
    ChangeLimits(Vec<(Limit, i64)>),
    /// Deletes everything. The response contains the number of callers that the rate limiter remembers.
    Reset {
        rate_buckets: u64,
    },
}

/// The tenant that a new API key is for.
#[derive(Clone, Debug)]
pub enum TenantOfKey {
    Existing(String),
    /// A new tenant of the home cell.
    New,
    /// A new tenant of another cell, which has its row already.
    Placed {
        tenant: Tenant,
        cell: CellId,
    },
}

/// Rows that the settlement of an agent counts towards the size of a batch.
const AGENT_ROWS: usize = 16;

impl From<BatchedCommand> for Command {
    fn from(command: BatchedCommand) -> Self {
        Self::Batched(command)
    }
}

impl From<TransactionalCommand> for Command {
    fn from(command: TransactionalCommand) -> Self {
        Self::Transactional(command)
    }
}

impl Command {
    /// The share of a batch that the command takes: about the number of rows it writes.
    pub fn rows(&self) -> usize {
        match self {
            Self::Batched(BatchedCommand::RecordUsageBulk(items)) => items.len().max(1),
            // The number of pairs is not known yet. This limits the number of agents that a batch reads.
            Self::Batched(BatchedCommand::SettleAgent(_)) => AGENT_ROWS,
            Self::Transactional(TransactionalCommand::RegisterServices(items)) => items.len().max(1),
            _ => 1,
        }
    }
}

impl BatchedCommand {
    /// Calls `visit` with each pair that the command names.
    pub fn for_each_pair(&self, mut visit: impl FnMut(&Pair)) {
        match self {
            Self::RecordUsage(record) => visit(&record.pair),
            Self::RecordUsageBulk(items) => items.iter().flatten().for_each(|record| visit(&record.pair)),
            Self::Settle(pair) | Self::ResetUsage(pair) => visit(pair),
            Self::SettleAgent(_) | Self::Refuse(_) => {}
        }
    }

    /// Whether it records usage. A batch applies usage before settlements and resets.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::RecordUsage(_) | Self::RecordUsageBulk(_))
    }
}

impl TransactionalCommand {
    /// Whether no other commit may run at the same time.
    pub fn is_exclusive(&self) -> bool {
        matches!(self, Self::Reset { .. })
    }

    /// Whether it changes services or webhooks of the request's tenant, whose row is then locked first.
    pub fn is_of_tenant(&self) -> bool {
        match self {
            Self::RegisterService(_)
            | Self::RegisterServices(_)
            | Self::ChangeService { .. }
            | Self::DeleteService(_)
            | Self::SetServiceEnabled { .. }
            | Self::CreateWebhook { .. }
            | Self::ChangeWebhook { .. }
            | Self::RotateWebhookSecret { .. }
            | Self::DeleteWebhook { .. }
            | Self::TestWebhook { .. }
            | Self::ResendDeliveries { .. }
            | Self::RequestMissedEvents { .. } => true,
            Self::CreateApiKey { .. }
            | Self::ImportApiKey { .. }
            | Self::RotateApiKey { .. }
            | Self::CancelKeyRotation { .. }
            | Self::RevokeApiKey { .. }
            | Self::SetPaused(_)
            | Self::ChangeLimits(_)
            | Self::Reset { .. } => false,
        }
    }
}

/// A write request: the command, and what its response and its idempotency record need.
#[derive(Clone, Debug)]
pub struct Request {
    pub tenant: Tenant,
    pub origin: Origin,
    pub keyed: Option<Keyed>,
    pub method: &'static str,
    /// As sent, without the query.
    pub path: String,
    pub request_id: String,
    /// None while traces are off.
    pub trace: Option<Arc<RequestTrace>>,
    pub deadline: Instant,
    pub command: Command,
}

/// The idempotency key of a request, and its fingerprint.
#[derive(Clone, Debug)]
pub struct Keyed {
    pub id: Arc<CallerKey>,
    pub fingerprint: Fingerprint,
}
