//! Spans to an OpenTelemetry collector: OTLP over HTTP, protobuf.
//!
//! Nothing waits for the collector. Spans go to a bounded queue; a thread of the SDK's sends them in batches, each with a
//! time-out, and drops what does not fit or was not taken. `longshore_otlp_exports_total` tells how that goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

/// Spans that wait to be sent, some KiB each; more are dropped.
const QUEUE: usize = 4_096;
/// How long spans wait for company.
const DELAY: Duration = Duration::from_secs(1);
/// One request, and its repetitions.
const TIMEOUT: Duration = Duration::from_secs(3);
/// What the last spans may take at the end of the process.
const LAST_SPANS: Duration = Duration::from_secs(4);
/// How much of an answer is read.
const ANSWER: usize = 64 * 1024;

/// An export that was started.
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Sends nothing yet.
    pub fn start(endpoint: &Url, role: &'static str, runtime: &Handle) -> Result<Self> {
        let endpoint = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
        let bad = "the setting LONGSHORE_OTLP_ENDPOINT cannot be used";
        let client = reqwest::Client::builder().timeout(TIMEOUT).build().context(bad)?;
        let sender = Sender { client, runtime: runtime.clone(), failing: AtomicBool::new(false) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_endpoint(endpoint)
            .with_timeout(TIMEOUT)
            .build()
            .context(bad)?;
        let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(DELAY).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder()
            .with_service_name(format!("longshore-{role}"))
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("process.pid", i64::from(std::process::id())),
            ])
            .build();
        let provider = SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
        Ok(Self { provider })
    }

    /// Takes longshore's own spans, those of single steps included, and what is logged in them from `info` on.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let ours = filter_fn(|metadata| {
            metadata.target().starts_with("longshore") && (metadata.is_span() || *metadata.level() <= Level::INFO)
        });
        let tracer = self.provider.tracer("longshore");
        tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false).with_filter(ours)
    }

    /// Sends the last spans, for a bounded time.
    pub fn finish(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Sends over the program's HTTP client, on its runtime: the SDK's thread has none.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    /// Whether the last request failed, so that a collector that is away is logged once.
    failing: AtomicBool,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request = self.client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body);
        let answer = match self.runtime.spawn(send(request)).await {
            Ok(answer) => answer.map_err(HttpError::from),
            Err(error) => Err(error.into()),
        };
        self.tell(&answer);
        answer
    }
}

impl Sender {
    fn tell(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let trouble = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        longshore_telemetry::metrics().otlp_export(trouble.is_none());
        let failed_before = self.failing.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !failed_before => {
                tracing::warn!(error, "LONGSHORE_OTLP_ENDPOINT takes no spans; they are dropped until it does");
            }
            None if failed_before => tracing::info!("LONGSHORE_OTLP_ENDPOINT takes spans again"),
            _ => {}
        }
    }
}

async fn send(request: reqwest::RequestBuilder) -> reqwest::Result<Response<Bytes>> {
    // The address may carry what is nobody else's business.
    let mut answer = request.send().await.map_err(reqwest::Error::without_url)?;
    let mut body = BytesMut::new();
    while let Some(block) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + block.len() > ANSWER {
            break;
        }
        body.extend_from_slice(&block);
    }
    let mut response = Response::new(body.freeze());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}
