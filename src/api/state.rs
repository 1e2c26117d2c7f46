//! What handlers share.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use sqlx::PgPool;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clock::Clock;
use crate::command::Committer;
use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::live_limits::LiveLimits;
use crate::store::{FaultKind, StoreError, api_keys};

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
}

#[derive(Clone)]
pub struct ApiState {
    pub settings: Arc<ApiSettings>,
    pub pool: PgPool,
    pub committer: Committer,
    pub clock: Clock,
    pub limits: LiveLimits,
    /// Cancelled when a shutdown begins.
    pub draining: CancellationToken,
    pub known_keys: Arc<KnownKeys>,
    pub export_turns: Arc<Semaphore>,
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

/// Recently seen API keys by their hash; none for a key that is unknown.
pub struct KnownKeys(Cache<[u8; 32], (Instant, Option<Tenant>)>);

impl Default for KnownKeys {
    fn default() -> Self {
        Self(Cache::new(KEYS_REMEMBERED))
    }
}

impl KnownKeys {
    pub async fn tenant_of(&self, pool: &PgPool, hash: &[u8; 32]) -> Result<Option<Tenant>, StoreError> {
        // The age counts from before the lookup.
        let now = Instant::now();
        if let Some((since, tenant)) = self.0.get(hash)
            && now - since < KEY_MEMORY
        {
            return Ok(tenant);
        }
        let tenant = api_keys::tenant_of(&mut *pool.acquire().await?, hash).await?;
        self.0.insert(*hash, (now, tenant.clone()));
        Ok(tenant)
    }

    /// Keys were made or revoked here: look them all up again.
    pub fn forget(&self) {
        self.0.clear();
    }
}
