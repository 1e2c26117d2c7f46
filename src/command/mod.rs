//! The commands: every change of billing state is a [`Command`]. Batched commands are decided in memory by pure
//! functions. Transactional commands execute statements in a transaction.

pub mod context;
pub mod counters;
pub mod reply;
pub mod request;

mod admin;
mod api_keys;
mod deliveries;
mod services;
mod settlements;
mod usage;
mod webhooks;

use crate::domain::refusal::Refusal;

use context::{BatchContext, Stop, TransactionContext};
pub use reply::{Answer, Reply};
pub use request::{BatchedCommand, Command, Keyed, Request, TenantOfKey, TransactionalCommand};

/// The types of the responses to writes, for the OpenAPI document.
pub mod answers {
    pub use super::admin::reset::Answer as Reset;
    pub use super::api_keys::{Created as CreatedApiKey, Imported as ImportedApiKey, Rotated as RotatedApiKey};
    pub use super::deliveries::Resent;
    pub use super::services::change::{ServiceMetadata, ServicePrice};
    pub use super::services::register::Registered;
    pub use super::services::register_bulk::Results;
    pub use super::services::set_enabled::ServiceState;
    pub use super::settlements::settle::{AgentSettled, Settled};
    pub use super::usage::record::{BulkRecorded, Recorded};
    pub use super::usage::reset::Cleared;
    pub use super::webhooks::{Created as CreatedWebhook, RotatedSecret as RotatedWebhookSecret};
}

impl BatchedCommand {
    /// Decides the command in memory.
    pub fn apply(&self, context: &mut BatchContext<'_, '_>, request: &Request) -> Result<Reply, Refusal> {
        match self {
            Self::RecordUsage(record) => usage::record::apply(context, request, record),
            Self::RecordUsageBulk(items) => Ok(usage::record::apply_bulk(context, request, items)),
            Self::Settle(pair) => settlements::settle::apply(context, request, pair),
            Self::SettleAgent(agent) => settlements::settle::apply_to_agent(context, request, agent),
            Self::ResetUsage(pair) => usage::reset::apply(context, request, pair),
            Self::Refuse(refusal) => Err(refusal.clone()),
        }
    }
}

impl TransactionalCommand {
    /// Executes the command's statements in the transaction of `context`.
    pub async fn apply(&self, context: &mut TransactionContext<'_>, request: &Request) -> Result<Reply, Stop> {
        let tenant = &request.tenant;
        match self {
            Self::RegisterService(registration) => services::register::apply(context, tenant, registration).await,
            Self::RegisterServices(items) => services::register_bulk::apply(context, tenant, items).await,
            Self::ChangeService { service_id, edit } => {
                services::change::apply(context, tenant, service_id, edit).await
            }
            Self::DeleteService(service_id) => services::delete::apply(context, tenant, service_id).await,
            Self::SetServiceEnabled { service_id, enabled } => {
                services::set_enabled::apply(context, tenant, service_id, *enabled).await
            }
            Self::ImportApiKey { label, prefix, hash } => api_keys::import(context, label, prefix, hash).await,
            Self::CreateApiKey { label, tenant, limits } => api_keys::create(context, label, tenant, limits).await,
            Self::RotateApiKey { prefix, overlap_ms, expires_at } => {
                api_keys::rotate(context, prefix, *overlap_ms, *expires_at).await
            }
            Self::CancelKeyRotation { prefix, replacement } => {
                api_keys::cancel_rotation(context, prefix, replacement).await
            }
            Self::RevokeApiKey { prefix } => api_keys::revoke(context, prefix).await,
            Self::CreateWebhook { url, events } => webhooks::create(context, tenant, url, events).await,
            Self::ChangeWebhook { id, change } => webhooks::change(context, tenant, id, change).await,
            Self::RotateWebhookSecret { id, overlap_ms } => {
                webhooks::rotate_secret(context, tenant, id, *overlap_ms).await
            }
            Self::DeleteWebhook { id } => webhooks::delete(context, tenant, id).await,
            Self::TestWebhook { id } => webhooks::test(context, tenant, id).await,
            Self::ResendDeliveries { webhook, which } => {
                deliveries::resend(context, tenant, webhook, which, &request.origin).await
            }
            Self::RequestMissedEvents { webhook, since } => {
                deliveries::request_missed(context, tenant, webhook, *since, &request.origin).await
            }
            Self::SetPaused(paused) => admin::config::set_paused(context, *paused).await,
            Self::ChangeLimits(changes) => admin::config::change_limits(context, changes).await,
            Self::Reset { rate_buckets } => admin::reset::apply(context, *rate_buckets).await,
        }
    }
}
