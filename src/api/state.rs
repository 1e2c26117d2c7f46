//! What handlers share.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;
use sqlx::PgPool;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::clock::Clock;
use crate::command::Committer;
use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::jobs::dispatcher::Dispatcher;
use crate::jobs::{follow_controls, janitor::LastRun};
use crate::live_limits::LiveLimits;
use crate::store::idempotency::OldestExpiry;
use crate::store::{FaultKind, StoreError, api_keys};

use super::rate_limit::RateLimiter;
use super::reads::Reads;

/// API keys whose tenant is remembered, and for how long: revocation reaches every replica within a second.
const KEYS_REMEMBERED: usize = 10_000;
const KEY_MEMORY: Duration = Duration::from_millis(900);

/// The part of the settings that requests are judged by.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    pub require_api_key: bool,
    pub admin_api_key: Option<String>,
    /// Trusted proxy hops.
    pub trust_proxy: usize,
    pub request_timeout: Duration,
    /// Webhooks may have targets outside the public internet.
    pub webhook_allow_private: bool,
    pub allow_admin_reset: bool,
    pub rate_limit: bool,
    /// Normalised.
    pub cors_allowed_origins: Vec<String>,
    /// None: responses are not compressed. Else from how many bytes on.
    pub compression_threshold_bytes: Option<u64>,
}

/// The parts behind one handle: it is cloned several times for each request.
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
    pub pool: PgPool,
    pub committer: Committer,
    pub clock: Clock,
    pub limits: LiveLimits,
    /// Cancelled when a shutdown begins.
    pub draining: CancellationToken,
    pub known_keys: KnownKeys,
    pub export_turns: Arc<Semaphore>,
    /// Makes the attempts of webhook tests.
    pub dispatcher: Dispatcher,
    /// None if RATE_LIMIT is off.
    pub limiter: Option<RateLimiter>,
    /// When this process's janitor last ran.
    pub janitor_ran: LastRun,
    /// Of the record that waits longest for a janitor.
    pub oldest_expiry: OldestExpiry,
    pub started: Instant,
    pub reads: Reads,
}

/// Turns for exports. Each keeps a connection for as long as its client reads, so that all of them together may take no
/// more than a quarter of the `connections_max` there are for reads.
pub fn export_turns(connections_max: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((connections_max as usize / 4).max(1)))
}

impl ApiState {
    /// A connection for a read.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>, Refusal> {
        self.pool.acquire().await.map_err(|error| read_refusal(&error.into()))
    }

    /// Takes over what was changed through this process, before it is answered. If the database is gone by now, the job
    /// that follows changes does it later.
    pub async fn follow_controls(&self) {
        self.known_keys.forget();
        if let Err(error) = follow_controls::run_once(&self.pool, &self.limits).await {
            warn!(%error, "a change could not be read back");
        }
    }
}

/// What a read answers when the store failed.
pub fn read_refusal(error: &StoreError) -> Refusal {
    match error.kind() {
        FaultKind::Poisoned | FaultKind::KeyTaken => {
            error!(%error, "a read failed");
            Refusal::Internal
        }
        _ => Refusal::StoreUnavailable,
    }
}

/// Recently seen API keys by their hash; none for a key that is unknown. What was looked up before keys were made or
/// revoked, here or elsewhere, does not count.
pub struct KnownKeys {
    keys: Cache<[u8; 32], Known>,
    changes: AtomicU64,
}

#[derive(Clone)]
struct Known {
    looked_up: Instant,
    /// Changes made through this process, and the revision of all processes' changes, at that time.
    changes: u64,
    revision: i64,
    tenant: Option<Tenant>,
}

impl Default for KnownKeys {
    fn default() -> Self {
        Self { keys: Cache::new(KEYS_REMEMBERED), changes: AtomicU64::new(0) }
    }
}

impl KnownKeys {
    pub async fn tenant_of(
        &self,
        pool: &PgPool,
        live: &LiveLimits,
        hash: &[u8; 32],
    ) -> Result<Option<Tenant>, StoreError> {
        // All of them from before the lookup.
        let (now, changes, revision) = (Instant::now(), self.changes.load(Ordering::Acquire), live.keys_revision());
        if let Some(known) = self.keys.get(hash)
            && (known.changes, known.revision) == (changes, revision)
            && now - known.looked_up < KEY_MEMORY
        {
            return Ok(known.tenant);
        }
        // Boxed, or every request would carry the size of a lookup, which few need.
        let look_up = async { api_keys::tenant_of(&mut *pool.acquire().await?, hash).await };
        let tenant = Box::pin(look_up).await?;
        self.keys.insert(*hash, Known { looked_up: now, changes, revision, tenant: tenant.clone() });
        Ok(tenant)
    }

    /// Keys were made or revoked here: look them all up again.
    pub fn forget(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
