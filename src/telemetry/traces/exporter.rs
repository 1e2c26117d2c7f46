//! The way of a span to the collector: a bounded queue, whose thread exports what waits. A collector that is slow or gone
//! costs spans, which are counted, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use reqwest::{Client, redirect};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::metrics;
use crate::settings::traces::TraceSettings;
use crate::tls;

/// Starts the thread that exports to the collector.
pub fn queue(settings: &TraceSettings) -> Result<Queue, ExporterBuildError> {
    let client = Client::builder()
        // The exporter's own limit does not end a request that hangs.
        .timeout(settings.timeout)
        .redirect(redirect::Policy::none())
        .tls_backend_preconfigured(tls::client_config())
        .build()
        .expect("the settings of the client are constant");
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_http_client(Collector { client, runtime: Handle::current() })
        .with_endpoint(settings.endpoint.as_str())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(settings.timeout)
        .with_headers(settings.headers.clone())
        .build()?;
    let spans = Arc::new(AtomicUsize::new(0));
    let exporter = Exporter { exporter, spans: spans.clone(), fails: AtomicBool::new(false) };
    let config = BatchConfigBuilder::default().with_max_queue_size(settings.queue_max).build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok(Queue { processor, spans, spans_max: settings.queue_max })
}

/// Sends with the runtime of the service: the thread that exports has none.
#[derive(Debug)]
struct Collector {
    client: Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Spans that have ended.
#[derive(Debug)]
pub struct Queue {
    processor: BatchSpanProcessor,
    /// How many wait or are being exported.
    spans: Arc<AtomicUsize>,
    spans_max: usize,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        // The processor would drop them as well, and not count them.
        if self.spans.fetch_add(1, Ordering::Relaxed) >= self.spans_max {
            self.spans.fetch_sub(1, Ordering::Relaxed);
            metrics::spans_ended("dropped", 1);
            return;
        }
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Counts what is exported and what is lost, and logs when that changes.
#[derive(Debug)]
struct Exporter {
    exporter: OtlpExporter,
    spans: Arc<AtomicUsize>,
    fails: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exported = self.exporter.export(batch).await;
        self.spans.fetch_sub(count, Ordering::Relaxed);
        metrics::spans_ended(if exported.is_ok() { "exported" } else { "failed" }, count as u64);
        match (&exported, self.fails.swap(exported.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => warn!(%error, "spans cannot be exported"),
            (Ok(()), true) => info!("spans are exported again"),
            _ => {}
        }
        exported
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
