//! The router that connections use: first the one of the start, then the full one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;

#[derive(Clone)]
pub struct CurrentRouter(Arc<ArcSwap<Router>>);

impl CurrentRouter {
    pub fn new(router: Router) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(router)))
    }

    /// The router for one request.
    pub fn get(&self) -> Router {
        Router::clone(&self.0.load())
    }

    /// Used for every request that begins from now on.
    pub fn replace(&self, router: Router) {
        self.0.store(Arc::new(router));
    }
}
