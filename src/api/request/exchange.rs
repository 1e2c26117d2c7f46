//! One request, as the pipeline hands it to a handler; and what a handler gives back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::Value;

use crate::command::{self, Answer, BatchedCommand, Command, Keyed, Reply};
use crate::domain::fingerprint::Fingerprint;
use crate::domain::names::IdempotencyKey;
use crate::domain::refusal::Refusal;
use crate::store::idempotency::CallerKey;

use crate::api::request::body;
use crate::api::request::caller::Identity;
use crate::api::request::query::Query;
use crate::api::routes::Route;
use crate::api::state::ApiState;

/// The peer of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

#[derive(Debug)]
pub struct Exchange {
    pub request_id: String,
    /// As sent, without query.
    pub path: String,
    pub route: &'static Route,
    pub parameters: Vec<(&'static str, String)>,
    pub identity: Identity,
    pub query: Query,
    pub deadline: Instant,
    /// Set by step 10: body and query are in order.
    is_in_order: AtomicBool,
}

impl Exchange {
    /// One that has yet to pass steps 9 and 10.
    pub fn new(
        (request_id, path): (&str, &str),
        route: &'static Route,
        identity: Identity,
        uri: &Uri,
        deadline: Instant,
    ) -> Self {
        Self {
            request_id: request_id.to_owned(),
            path: path.to_owned(),
            route,
            parameters: parameters(route.pattern, uri.path()),
            identity,
            query: Query::parse(uri.query().unwrap_or_default()),
            deadline,
            is_in_order: AtomicBool::new(false),
        }
    }

    pub fn is_in_order(&self) -> bool {
        self.is_in_order.load(Ordering::Relaxed)
    }

    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(own, _)| *own == name).map_or("", |(_, value)| value)
    }

    pub fn caller_key(&self, key: String) -> CallerKey {
        CallerKey { caller: self.identity.caller.to_string(), key }
    }
}

/// The exchange, for handlers of reads.
pub struct Read(pub Arc<Exchange>);

impl<S: Send + Sync> FromRequestParts<S> for Read {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        parts.extensions.get::<Arc<Exchange>>().cloned().map(Self).ok_or(Failure(Refusal::Internal))
    }
}

/// A write whose body, query and key were read, for handlers of writes.
pub struct Write {
    pub exchange: Arc<Exchange>,
    pub body: Value,
    keyed: Option<Keyed>,
}

impl Write {
    pub async fn read(request: Request, strict_query: &[&str]) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let exchange = parts.extensions.get::<Arc<Exchange>>().cloned().ok_or(Failure(Refusal::Internal))?;
        let ignores_body = exchange.route.method == "DELETE";
        let body = if ignores_body {
            Value::Object(serde_json::Map::new())
        } else {
            body::read(&parts.headers, body, exchange.deadline, parts.extensions.get()).await?
        };
        check_query(&exchange, strict_query)?;
        let keyed = if exchange.route.idempotent { keyed(&parts.headers, &exchange, &body)? } else { None };
        Ok(Self { exchange, body, keyed })
    }

    /// Executes what the handler understood, or answers that it is no valid request. A keyed refusal goes the same way
    /// as a command, because its key may already have an answer, and because it is kept under its key.
    pub async fn submit(
        self,
        state: &ApiState,
        command: Result<impl Into<Command>, Refusal>,
    ) -> Result<Response, Failure> {
        match self.execute(state, command).await? {
            Answer::Fresh(reply) => Ok(respond(reply)),
            Answer::Replayed(reply) => {
                let mut response = respond(reply);
                response.headers_mut().insert("idempotency-replayed", header::HeaderValue::from_static("true"));
                Ok(response)
            }
            Answer::Refused(refusal) => Err(Failure(refusal)),
        }
    }

    /// The same, for handlers that do not answer with the reply as it is.
    pub async fn execute(
        self,
        state: &ApiState,
        command: Result<impl Into<Command>, Refusal>,
    ) -> Result<Answer, Failure> {
        let command = match command {
            Ok(command) => command.into(),
            Err(refusal) if self.keyed.is_none() => return Err(Failure(refusal)),
            Err(refusal) => BatchedCommand::Refuse(refusal).into(),
        };
        let request = command::Request {
            tenant: self.exchange.identity.tenant.clone(),
            keyed: self.keyed,
            method: self.exchange.route.method,
            path: self.exchange.path.clone(),
            request_id: self.exchange.request_id.clone(),
            deadline: self.exchange.deadline,
            command,
        };
        Ok(state.committer.submit(request).await)
    }
}

fn keyed(headers: &axum::http::HeaderMap, exchange: &Exchange, body: &Value) -> Result<Option<Keyed>, Refusal> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::KeyRepeated);
    }
    let Some(key) = IdempotencyKey::parse(value.as_bytes()).map_err(|_| Refusal::KeySyntax)? else { return Ok(None) };
    let parameters: Vec<(&str, &str)> =
        exchange.parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let route = exchange.route;
    Ok(Some(Keyed {
        id: exchange.caller_key(key.as_str().to_owned()),
        fingerprint: Fingerprint::of(route.method, route.pattern, &parameters, body),
    }))
}

/// Step 10: unknown parameters where the route is strict, and U+0000 anywhere.
pub fn check_query(exchange: &Exchange, known: &[&str]) -> Result<(), Refusal> {
    if exchange.route.strict_query
        && let Some(name) = exchange.query.first_unknown(known)
    {
        return Err(Refusal::UnexpectedParameter(name.to_owned()));
    }
    let has_nul = exchange.query.has_nul() || exchange.parameters.iter().any(|(_, value)| value.contains('\0'));
    if has_nul {
        return Err(Refusal::NulCharacter);
    }
    exchange.is_in_order.store(true, Ordering::Relaxed);
    Ok(())
}

/// The decoded path parameters of `path` under `pattern`.
fn parameters(pattern: &'static str, path: &str) -> Vec<(&'static str, String)> {
    pattern
        .split('/')
        .zip(path.split('/'))
        .filter_map(|(name, value)| Some((name.strip_prefix(':')?, value)))
        .map(|(name, value)| (name, percent_decode_str(value).decode_utf8_lossy().into_owned()))
        .collect()
}

/// A refusal on its way out; the pipeline, which knows the request, writes its body.
#[derive(Clone, Debug)]
pub struct Failure(pub Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A 200 with a JSON body.
pub fn json(body: &impl Serialize) -> Response {
    respond(Reply::json(200, body))
}

pub fn respond(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match reply.body {
        Some(body) => {
            (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], Body::from(body)).into_response()
        }
        None => status.into_response(),
    }
}
