//! A collector of traces: takes what is exported with OTLP over HTTP, decodes it with types that are not ours, and keeps it.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::LIMIT;

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    pub name: String,
    pub kind: otlp::span::SpanKind,
    pub trace_id: String,
    pub span_id: String,
    /// Empty: it has none.
    pub parent_id: String,
    pub tracestate: String,
    pub attributes: BTreeMap<String, Value>,
    /// Trace and span.
    pub links: Vec<(String, String)>,
    pub is_error: bool,
    pub duration_ns: u64,
    pub resource: BTreeMap<String, Value>,
    /// A header of the export.
    pub authorization: String,
}

impl Span {
    pub fn attribute(&self, name: &str) -> Value {
        self.attributes.get(name).cloned().unwrap_or_default()
    }

    pub fn id(&self) -> (String, String) {
        (self.trace_id.clone(), self.span_id.clone())
    }
}

pub struct Collector {
    /// A base URL.
    pub endpoint: String,
    spans: watch::Sender<Vec<Span>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let spans = watch::Sender::new(Vec::new());
        let router = Router::new().route("/v1/traces", post(take)).with_state(spans.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint: format!("http://{address}"), spans }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Waits for a span, and returns the first that is one.
    pub async fn find(&self, what: &str, is_one: impl Fn(&Span) -> bool) -> Span {
        let mut spans = self.spans.subscribe();
        let found = spans.wait_for(|spans| spans.iter().any(&is_one));
        let found = tokio::time::timeout(LIMIT, found).await.is_ok();
        assert!(found, "{what}: {:#?}", self.spans());
        self.spans().into_iter().find(is_one).expect("it was there")
    }
}

async fn take(State(all): State<watch::Sender<Vec<Span>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let authorization = headers.get("authorization").map(|value| value.to_str().expect("ASCII").to_owned());
    let exported = ExportTraceServiceRequest::decode(body).expect("protobuf");
    let mut spans = Vec::new();
    for group in exported.resource_spans {
        let resource = attributes(group.resource.expect("a resource").attributes);
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                name: span.name.clone(),
                kind: span.kind(),
                is_error: span.status.as_ref().is_some_and(|status| status.code() == otlp::status::StatusCode::Error),
                trace_id: hex::encode(span.trace_id),
                span_id: hex::encode(span.span_id),
                parent_id: hex::encode(span.parent_span_id),
                tracestate: span.trace_state,
                attributes: attributes(span.attributes),
                links: span
                    .links
                    .into_iter()
                    .map(|link| (hex::encode(link.trace_id), hex::encode(link.span_id)))
                    .collect(),
                duration_ns: span.end_time_unix_nano - span.start_time_unix_nano,
                resource: resource.clone(),
                authorization: authorization.clone().unwrap_or_default(),
            });
        }
    }
    all.send_modify(|all| all.extend(spans));
    StatusCode::OK
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(json!(text)),
        Any::IntValue(number) => Some(json!(number)),
        _ => None,
    };
    pairs.into_iter().map(|pair| (pair.key.clone(), value(&pair).expect("text or a number"))).collect()
}
