//! State that all handlers share.

use std::ops::Deref;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock::Clock;
use crate::commit::Committer;
use crate::domain::identifiers::KeyPrefix;
use crate::domain::refusal::Refusal;
use crate::full_callers::FullCallers;
use crate::history::History;
use crate::job_health::JobHealth;
use crate::jobs::janitor::LastRun;
use crate::jobs::watch_runtime_config::RuntimeConfigWatcher;
use crate::jobs::webhooks::dispatcher::Dispatcher;
use crate::query::exports::ExportTurns;
use crate::query::{PolledReads, Reader};
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::api::ApiSettings;
use crate::store::retention::OldestExpiry;

use crate::api::http::admission::Admission;
use crate::api::http::rate_limit::RateLimiter;
use crate::api::request::errors::ApiError;
use crate::api::request::etag::Tagged;
use crate::api::request::known_keys::KnownKeys;

/// Cheap to clone: each request clones it several times.
#[derive(Clone)]
pub struct ApiState(Arc<ApiParts>);

impl Deref for ApiState {
    type Target = ApiParts;

    fn deref(&self) -> &ApiParts {
        &self.0
    }
}

impl From<ApiParts> for ApiState {
    fn from(parts: ApiParts) -> Self {
        Self(Arc::new(parts))
    }
}

pub struct ApiParts {
    pub settings: ApiSettings,
    pub reader: Reader,
    pub polled: PolledReads<Tagged>,
    pub committer: Committer,
    pub clock: Clock,
    pub runtime_config: SharedRuntimeConfig,
    pub config_watcher: RuntimeConfigWatcher,
    /// Cancelled when a shutdown begins.
    pub draining: CancellationToken,
    pub known_keys: KnownKeys,
    pub export_turns: Arc<ExportTurns>,
    /// Counts what clients hold of this process.
    pub admission: Admission,
    /// Makes the attempts of webhook tests.
    pub dispatcher: Dispatcher,
    /// `None` if RATE_LIMIT is off.
    pub limiter: Option<Arc<RateLimiter>>,
    /// For API keys with a limit beside that of their tenant.
    pub key_limiter: RateLimiter<KeyPrefix>,
    pub jobs: JobHealth,
    pub full_callers: FullCallers,
    pub history: History,
    /// When the janitor of this process last ran.
    pub janitor_ran: LastRun,
    /// Expiry of the oldest expired record that is not deleted yet.
    pub oldest_expiry: OldestExpiry,
    pub started: Instant,
}

impl ApiState {
    /// Reloads the runtime configuration and the API keys after a write by this process and before its response, so
    /// that a caller who is told of a pause can rely on it. Reloads after a failed write, too, because it may have
    /// committed.
    pub async fn follow_config<T>(
        &self,
        deadline: std::time::Instant,
        response: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.known_keys.invalidate();
        while let Err(error) = self.config_watcher.run_once().await {
            warn!(%error, "a change could not be read back");
            if response.is_err() || std::time::Instant::now() >= deadline {
                return response.and(Err(Refusal::OutcomeUnknown.into()));
            }
        }
        response
    }
}
