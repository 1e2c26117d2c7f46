//! Extractors of the ids in a path. A write takes them as a `Result`, because an invalid id is a refusal that is stored
//! under the request's idempotency key.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::usage::Pair;

use crate::api::request::context::RequestContext;
use crate::api::request::errors::ApiError;

/// The service in a path.
#[derive(Clone, Debug)]
pub struct ServicePath(pub ServiceId);

/// The agent in a path. The refusal names both ids, as in all reads of usage.
#[derive(Clone, Debug)]
pub struct AgentPath(pub AgentId);

/// The pair in a path.
#[derive(Clone, Debug)]
pub struct PairPath(pub Pair);

impl<S: Sync> FromRequestParts<S> for ServicePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let service_id = service_id(&*RequestContext::of(parts)?);
        service_id.map(Self).ok_or(Refusal::Service.into())
    }
}

impl<S: Sync> FromRequestParts<S> for AgentPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let agent = agent(&*RequestContext::of(parts)?);
        agent.map(Self).ok_or(Refusal::AgentAndService.into())
    }
}

impl<S: Sync> FromRequestParts<S> for PairPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let context = RequestContext::of(parts)?;
        let pair = agent(&context).zip(service_id(&context));
        pair.map(|(agent, service_id)| Self(Pair { agent, service_id })).ok_or(Refusal::AgentAndService.into())
    }
}

fn agent(context: &RequestContext) -> Option<AgentId> {
    AgentId::parse_existing(context.parameter("agent"))
}

fn service_id(context: &RequestContext) -> Option<ServiceId> {
    ServiceId::parse_existing(context.parameter("serviceId"))
}
