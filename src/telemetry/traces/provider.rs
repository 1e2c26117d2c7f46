//! Where spans are recorded: the sampler, the resource and the exporter, set once when the service starts.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample};
use tracing::warn;
use uuid::Uuid;

use crate::settings::traces::TraceSettings;

use super::exporter::queue;

static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

/// Records spans from here on. Needs the runtime of the service, which exports them.
pub fn start(settings: &TraceSettings) -> Result<(), ExporterBuildError> {
    let root = Sampler::TraceIdRatioBased(settings.ratio);
    let sampler = if settings.follows_parent { Sampler::ParentBased(Box::new(root)) } else { root };
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue(settings)?)
        .with_sampler(BatchesOfRecordedRequests(sampler))
        .with_resource(resource(settings.service_name.as_deref()))
        .build();
    let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME")).with_version(env!("CARGO_PKG_VERSION")).build();
    let tracer = provider.tracer_with_scope(scope);
    let _ = TRACES.set(Traces { tracer, provider });
    Ok(())
}

pub fn are_on() -> bool {
    TRACES.get().is_some()
}

/// Exports what waits, for as long as `limit`. Spans that end later are dropped.
pub async fn stop(limit: Duration) {
    let Some(Traces { provider, .. }) = TRACES.get() else { return };
    let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit)).await;
    if !matches!(stopped, Ok(Ok(()))) {
        warn!(limitMs = limit.as_millis() as u64, "some spans were not exported before the service stopped");
    }
}

pub fn tracer() -> Option<&'static SdkTracer> {
    TRACES.get().map(|traces| &traces.tracer)
}

/// Attributes from the environment take precedence.
fn resource(service_name: Option<&str>) -> Resource {
    let resource = Resource::builder_empty()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", Uuid::new_v4().to_string()))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match service_name {
        Some(name) => resource.with_service_name(name.to_owned()).build(),
        None => resource.build(),
    }
}

/// Records a batch whenever it records one of its requests, so that each trace leads to its batches.
#[derive(Clone, Debug)]
struct BatchesOfRecordedRequests(Sampler);

impl ShouldSample for BatchesOfRecordedRequests {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.iter().any(|link| link.span_context.is_sampled()) {
            let decision = SamplingDecision::RecordAndSample;
            return SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() };
        }
        self.0.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}
