//! The router that connections use: that of a starting service first, and then that of the started one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;

#[derive(Clone)]
pub struct CurrentRouter(Arc<ArcSwap<Router>>);

impl CurrentRouter {
    pub fn new(router: Router) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(router)))
    }

    /// For one request.
    pub fn get(&self) -> Router {
        Router::clone(&self.0.load())
    }

    /// For all requests that come from now on.
    pub fn replace(&self, router: Router) {
        self.0.store(Arc::new(router));
    }
}
