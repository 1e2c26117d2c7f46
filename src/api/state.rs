//! State that all handlers share.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::domain::cell::CellId;
use crate::domain::identifiers::KeyPrefix;
use crate::domain::refusal::Refusal;
use crate::history::History;
use crate::jobs::watch_runtime_config::RuntimeConfigWatcher;
use crate::query::coalescer::Coalescer;
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::api::ApiSettings;

use crate::api::http::admission::Admission;
use crate::api::http::rate_limit::RateLimiter;
use crate::api::request::errors::ApiError;
use crate::api::request::etag::Tagged;
use crate::api::request::known_keys::KnownKeys;

/// The index of the home cell.
pub const HOME: usize = 0;

/// A cell with pages of events as the API renders them.
pub type Cell = crate::cell::Cell<Tagged>;

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
    /// The first is the home cell.
    pub cells: Vec<Cell>,
    pub cell_indexes: HashMap<CellId, usize>,
    pub runtime_config: SharedRuntimeConfig,
    pub config_watcher: RuntimeConfigWatcher,
    /// Cancelled when a shutdown begins.
    pub draining: CancellationToken,
    pub known_keys: KnownKeys,
    /// Counts what clients hold of this process.
    pub admission: Admission,
    /// `None` if RATE_LIMIT is off.
    pub limiter: Option<Arc<RateLimiter>>,
    /// For API keys with a limit beside that of their tenant.
    pub key_limiter: RateLimiter<KeyPrefix>,
    pub history: History,
    /// Rendered metrics.
    pub metrics: Coalescer<(), Bytes>,
    pub started: Instant,
}

impl ApiState {
    /// Whether tenants live in more than one cell.
    pub fn has_cells(&self) -> bool {
        self.cells.len() > 1
    }

    /// The index of the cell where a tenant lives. `None`: in the home cell.
    pub fn cell_index(&self, cell: Option<&CellId>) -> Result<usize, Refusal> {
        let Some(id) = cell else { return Ok(HOME) };
        self.cell_indexes.get(id).copied().ok_or_else(|| {
            error!(cell = %id, "CELLS_FILE of this process does not list the cell of a tenant");
            Refusal::StoreUnavailable
        })
    }

    /// The home cell: API keys, runtime configuration, the tenant `public`, and callers without a key.
    pub fn home(&self) -> &Cell {
        &self.cells[HOME]
    }

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
