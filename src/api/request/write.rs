//! The extractor of write requests. It reads body, query and idempotency key, and submits the command of the handler.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde_json::Value;

use crate::command::{self, Answer, BatchedCommand, Command, Keyed};
use crate::domain::fingerprint::Fingerprint;
use crate::domain::names::IdempotencyKey;
use crate::domain::refusal::Refusal;

use crate::api::http::header_names::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED};
use crate::api::request::body;
use crate::api::request::context::RequestContext;
use crate::api::request::errors::ApiError;
use crate::api::request::response::respond;
use crate::api::state::ApiState;

#[derive(Debug)]
pub struct WriteRequest {
    pub context: Arc<RequestContext>,
    /// `{}` if the route reads no body.
    pub body: Value,
    keyed: Option<Keyed>,
}

impl<S: Sync> FromRequest<S> for WriteRequest {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let context = RequestContext::of(&parts)?;
        let ignores_body = context.route.method == "DELETE";
        let body = if ignores_body {
            Value::Object(serde_json::Map::new())
        } else {
            body::read(&parts.headers, body, context.deadline, &context.client).await?
        };
        context.check_query()?;
        let keyed = if context.route.idempotent { keyed(&parts.headers, &context, &body)? } else { None };
        Ok(Self { context, body, keyed })
    }
}

impl WriteRequest {
    /// Executes the command, or refuses the request if the handler found it invalid. A refusal with a key takes the
    /// path of a command, because the key may already have a stored response, and because the refusal is stored under
    /// it.
    pub async fn submit(
        self,
        state: &ApiState,
        command: Result<impl Into<Command>, impl Into<Refusal>>,
    ) -> Result<Response, ApiError> {
        let context = self.context.clone();
        match context.cell(state).committer.submit(self.into_request(command)?).await {
            Answer::Fresh(reply) => Ok(respond(reply)),
            Answer::Replayed(reply) => {
                let mut response = respond(reply);
                response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
                Ok(response)
            }
            Answer::Refused(refusal) => {
                if refusal == Refusal::TenantElsewhere {
                    context.note_departure(state);
                }
                Err(refusal.into())
            }
        }
    }

    /// The request in the form that the committer takes.
    pub fn into_request(
        self,
        command: Result<impl Into<Command>, impl Into<Refusal>>,
    ) -> Result<Box<command::Request>, ApiError> {
        let command = match command {
            Ok(command) => command.into(),
            Err(refusal) if self.keyed.is_none() => return Err(refusal.into().into()),
            Err(refusal) => BatchedCommand::Refuse(refusal.into()).into(),
        };
        let Self { context, keyed, .. } = self;
        Ok(Box::new(command::Request {
            tenant: context.tenant().clone(),
            origin: context.identity.origin(),
            keyed,
            method: context.route.method,
            path: context.received.path.clone(),
            request_id: context.received.request_id().to_owned(),
            trace: context.received.span.trace.clone(),
            deadline: context.deadline,
            command,
        }))
    }
}

fn keyed(headers: &HeaderMap, context: &RequestContext, body: &Value) -> Result<Option<Keyed>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::KeyRepeated);
    }
    let Some(key) = IdempotencyKey::parse(value.as_bytes()).map_err(|_| Refusal::KeySyntax)? else { return Ok(None) };
    let parameters: Vec<(&str, &str)> =
        context.parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let route = context.route;
    Ok(Some(Keyed {
        id: context.caller_key(key.into()).into(),
        fingerprint: Fingerprint::of(route.method, route.pattern, &parameters, body),
    }))
}
