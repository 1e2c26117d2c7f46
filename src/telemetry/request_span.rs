//! The span of a request: id, route and tenant. It is created when a line is formatted, because most requests log
//! nothing inside it, and creating a span takes about a microsecond.

use std::fmt;
use std::sync::{Arc, OnceLock};

use opentelemetry::TraceId;
use tokio::task::futures::TaskLocalFuture;
use tracing::{Event, Span, Subscriber, error_span};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::domain::caller::Tenant;

use super::traces::RequestTrace;

/// The data of the span.
#[derive(Debug)]
pub struct RequestSpan {
    pub request_id: String,
    /// None while traces are off.
    pub trace: Option<Arc<RequestTrace>>,
    /// The pattern of the route.
    route: OnceLock<&'static str>,
    tenant: OnceLock<Tenant>,
}

/// The request that a task works for.
type Current = Option<Arc<RequestSpan>>;

tokio::task_local! {
    static CURRENT: Current;
}

impl RequestSpan {
    pub fn new(request_id: String, trace: Option<Arc<RequestTrace>>) -> Arc<Self> {
        Arc::new(Self { request_id, trace, route: OnceLock::new(), tenant: OnceLock::new() })
    }

    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(|trace| trace.id())
    }

    /// Ends the trace of the request. `method`: None if it is no standard one.
    pub fn end_trace(&self, method: Option<&'static str>, status: u16) {
        if let Some(trace) = &self.trace {
            trace.end(method, self.route.get().copied(), self.tenant.get().map(Tenant::as_str), status);
        }
    }

    /// Adds the route to later lines.
    pub fn note_route(&self, pattern: &'static str) {
        let _ = self.route.set(pattern);
    }

    /// Adds the tenant to later lines.
    pub fn note_tenant(&self, tenant: &Tenant) {
        let _ = self.tenant.set(tenant.clone());
    }

    /// Runs `work` in this request: lines that it logs have this span.
    pub fn scope<F: Future>(self: &Arc<Self>, work: F) -> TaskLocalFuture<Current, F> {
        CURRENT.scope(Some(self.clone()), work)
    }

    /// Like [`Self::scope`], for synchronous work.
    pub fn in_scope<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(Some(self.clone()), work)
    }

    /// Puts `work`, which will run in another task, into the current request.
    pub fn carry<F: Future>(work: F) -> TaskLocalFuture<Current, F> {
        CURRENT.scope(Self::current(), work)
    }

    fn current() -> Current {
        CURRENT.try_get().ok().flatten()
    }

    /// Its level is the highest, so that no `LOG_LEVEL` hides it.
    fn to_span(&self) -> Span {
        let (route, tenant) = (self.route.get().copied(), self.tenant.get().map(Tenant::as_str));
        let trace_id = self.trace_id().map(tracing::field::display);
        error_span!("request", requestId = self.request_id, route, tenant, traceId = trace_id)
    }
}

/// Formats events like `F`, inside the span of the current request.
pub struct InRequestSpan<F>(pub F);

impl<S, N, F> FormatEvent<S, N> for InRequestSpan<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let _entered = RequestSpan::current().map(|request| request.to_span().entered());
        self.0.format_event(context, writer, event)
    }
}
