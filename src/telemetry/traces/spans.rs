//! The spans, with attributes as the semantic conventions of OpenTelemetry name them. No attribute holds a key, a secret, a
//! body or the path of a webhook's URL, which may be a secret too.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;
use reqwest::header::HeaderMap;

use crate::clock;
use crate::domain::trace_context::TraceContext;

use super::propagation::{context_of, parent_of_delivery, parent_of_request};
use super::provider::tracer;

/// The span of a request, which its handler ends and batches link to.
#[derive(Debug)]
pub struct RequestTrace {
    context: SpanContext,
    span: Mutex<Span>,
}

impl RequestTrace {
    /// None while traces are off. `path`: without keys. A request that is not recorded has a trace as well, which is
    /// passed on.
    pub fn begin(headers: &HeaderMap, request_id: &str, path: impl FnOnce() -> String) -> Option<Arc<Self>> {
        let tracer = tracer()?;
        let builder = SpanBuilder::from_name("HTTP").with_kind(SpanKind::Server);
        let mut span = builder.start_with_context(tracer, &parent_of_request(headers));
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("url.scheme", "http"),
                KeyValue::new("url.path", path()),
                KeyValue::new("agentpay.request_id", request_id.to_owned()),
            ]);
        }
        Some(Arc::new(Self { context: span.span_context().clone(), span: Mutex::new(span) }))
    }

    pub fn id(&self) -> TraceId {
        self.context.trace_id()
    }

    /// What an event of the request keeps.
    pub fn context(&self) -> TraceContext {
        context_of(&self.context)
    }

    /// `method`: None if it is no standard one. `route`: the pattern, if one was matched.
    pub fn end(&self, method: Option<&'static str>, route: Option<&'static str>, tenant: Option<&str>, status: u16) {
        if !self.is_recorded() {
            return;
        }
        let mut span = self.lock();
        let name = method.unwrap_or("HTTP");
        match route {
            Some(route) => span.update_name(format!("{name} {route}")),
            None => span.update_name(name),
        }
        span.set_attribute(KeyValue::new("http.request.method", method.unwrap_or("_OTHER")));
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        span.set_attributes(route.map(|route| KeyValue::new("http.route", route)));
        span.set_attributes(tenant.map(|tenant| KeyValue::new("agentpay.tenant", tenant.to_owned())));
        if status >= 500 {
            fail(&mut span, status.to_string());
        }
        span.end();
    }

    fn is_recorded(&self) -> bool {
        self.context.is_sampled()
    }

    fn lock(&self) -> MutexGuard<'_, Span> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt to commit a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchTrace {
    pub lane: usize,
    pub batch: u64,
    pub attempt: u32,
    pub requests: usize,
    pub began: Instant,
    /// Why it committed nothing.
    pub error: Option<&'static str>,
}

impl BatchTrace {
    /// Records the attempt, which has ended, and links it with the recorded ones of its requests. It is recorded if any of
    /// them is.
    pub fn end<'a>(self, requests: impl Iterator<Item = &'a RequestTrace>) {
        let Some(tracer) = tracer() else { return };
        let requests: Vec<&RequestTrace> = requests.filter(|request| request.is_recorded()).collect();
        if requests.is_empty() {
            return;
        }
        let now = clock::machine_now();
        let mut span = SpanBuilder::from_name("commit batch")
            .with_start_time(now - self.began.elapsed())
            .with_links(requests.iter().map(|request| Link::with_context(request.context.clone())).collect())
            .start_with_context(tracer, &Context::new());
        span.set_attributes([
            KeyValue::new("agentpay.lane", self.lane as i64),
            KeyValue::new("agentpay.batch", self.batch as i64),
            KeyValue::new("agentpay.attempt", i64::from(self.attempt)),
            KeyValue::new("agentpay.requests", self.requests as i64),
        ]);
        if let Some(error) = self.error {
            fail(&mut span, error);
        }
        span.end_with_timestamp(now.into());
        for request in requests {
            request.lock().add_link(span.span_context().clone(), Vec::new());
        }
    }
}

/// One run of a background job, which did something or failed.
#[derive(Clone, Copy, Debug)]
pub struct JobTrace {
    pub job: &'static str,
    pub run: u64,
    pub began: Instant,
}

impl JobTrace {
    /// Records the run, which has ended.
    pub fn end<E: fmt::Display>(self, error: Option<&E>) {
        let Some(tracer) = tracer() else { return };
        let now = clock::machine_now();
        let mut span = SpanBuilder::from_name(self.job)
            .with_start_time(now - self.began.elapsed())
            .start_with_context(tracer, &Context::new());
        span.set_attributes([KeyValue::new("agentpay.job", self.job), KeyValue::new("agentpay.run", self.run as i64)]);
        if let Some(error) = error {
            span.set_status(Status::error(error.to_string()));
        }
        span.end_with_timestamp(now.into());
    }
}

/// What an attempt sends, and where to. The path of the URL may be a secret.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub webhook_id: &'a str,
    pub delivery_id: &'a str,
    pub event_type: &'a str,
    pub host: Option<&'a str>,
    pub port: Option<u16>,
    /// Attempts before this one.
    pub attempts: i16,
}

/// One attempt to deliver an event, in the trace of the request that caused it.
#[derive(Debug)]
pub struct DeliveryTrace(Span);

impl DeliveryTrace {
    /// None while traces are off.
    pub fn begin(cause: Option<&TraceContext>) -> Option<Self> {
        let builder = SpanBuilder::from_name("POST").with_kind(SpanKind::Client);
        let mut span = builder.start_with_context(tracer()?, &parent_of_delivery(cause));
        span.set_attribute(KeyValue::new("http.request.method", "POST"));
        Some(Self(span))
    }

    /// What the receiver is told.
    pub fn context(&self) -> TraceContext {
        context_of(self.0.span_context())
    }

    /// `status`: None if the receiver did not answer. `error`: None if it took the delivery.
    pub fn end(mut self, delivery: &Delivery<'_>, status: Option<u16>, error: Option<String>) {
        let span = &mut self.0;
        if !span.is_recording() {
            return;
        }
        let Delivery { webhook_id, delivery_id, event_type, host, port, attempts } = *delivery;
        span.set_attributes([
            KeyValue::new("agentpay.webhook_id", webhook_id.to_owned()),
            KeyValue::new("agentpay.delivery_id", delivery_id.to_owned()),
            KeyValue::new("agentpay.event_type", event_type.to_owned()),
        ]);
        span.set_attributes(host.map(|host| KeyValue::new("server.address", host.to_owned())));
        span.set_attributes(port.map(|port| KeyValue::new("server.port", i64::from(port))));
        span.set_attributes((attempts > 0).then(|| KeyValue::new("http.request.resend_count", i64::from(attempts))));
        span.set_attributes(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
        if let Some(error) = error {
            fail(span, error);
        }
    }
}

fn fail(span: &mut Span, error: impl Into<Cow<'static, str>>) {
    let error = error.into();
    span.set_attribute(KeyValue::new("error.type", error.clone()));
    span.set_status(Status::error(error));
}
