//! The extractor of read requests.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::api::request::context::RequestContext;
use crate::api::request::errors::ApiError;

/// A read request whose query the pipeline has accepted.
#[derive(Clone, Debug)]
pub struct ReadRequest(Arc<RequestContext>);

impl Deref for ReadRequest {
    type Target = RequestContext;

    fn deref(&self) -> &RequestContext {
        &self.0
    }
}

impl<S: Sync> FromRequestParts<S> for ReadRequest {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        RequestContext::of(parts).map(Self)
    }
}
