//! Spans for who collects them: one for each request of a client, one for each question to an upstream, over OTLP.
//!
//! The trace that a client is in goes on (W3C Trace Context): its `traceparent` is taken up, and an endpoint gets one that
//! names our span. Without `trace.endpoint` nothing of this is done, and no header is passed on.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use tokio::runtime::Handle;

use crate::config;

/// How long spans gather before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take, and how long a stop waits for the last ones.
const PATIENCE: Duration = Duration::from_secs(5);
/// A collector's answer is a few bytes.
const LARGEST_ANSWER: usize = 64 << 10;

/// Where spans go; nowhere by default. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Collected>>);

struct Collected {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// One span, or none. Cheap to clone; all clones are the same one, which ends when it is said to.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Running>>);

struct Running {
    collected: Arc<Collected>,
    context: Context,
}

/// Sends to the collector, on the runtime that it was made on: the SDK has a thread of its own, and no runtime.
struct Post {
    client: Client<HttpConnector, Full<Bytes>>,
    runtime: Handle,
    fails: Arc<AtomicBool>,
}

impl Traces {
    /// To the collector that `config` names. Nothing is sent before there is something to send.
    ///
    /// # Errors
    /// When the SDK takes exception to the endpoint.
    ///
    /// # Panics
    /// Outside of a runtime, where there is a collector.
    pub fn new(config: &config::Trace) -> Result<Traces, ExporterBuildError> {
        let Some(endpoint) = &config.endpoint else { return Ok(Traces::default()) };
        let client = Client::builder(TokioExecutor::new()).build_http();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Post { client, runtime: Handle::current(), fails: Arc::default() })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()?;
        let gather = BatchConfigBuilder::default().with_scheduled_delay(GATHER).build();
        let share = f64::from(config.share.0) / 100.0;
        let resource = Resource::builder_empty()
            .with_service_name("tidelock")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(gather).build())
            // Whether a client's trace is wanted was decided where it began.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("tidelock");
        Ok(Traces(Some(Arc::new(Collected { provider, tracer }))))
    }

    /// The span of a client's request with these headers, from now on.
    pub fn request(&self, headers: &HeaderMap) -> Trace {
        let Some(collected) = &self.0 else { return Trace::default() };
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        Trace::begin(collected, "request", SpanKind::Server, &parent)
    }

    /// Sends what has gathered, and no more. To be called last.
    pub async fn close(self) {
        let Some(collected) = self.0 else { return };
        // It waits for its thread, which waits for this runtime.
        let closing = tokio::task::spawn_blocking(move || collected.provider.shutdown_with_timeout(PATIENCE));
        if let Ok(Err(error)) = closing.await {
            tracing::debug!(%error, "the last spans could not be sent");
        }
    }
}

impl Trace {
    fn begin(collected: &Arc<Collected>, name: &'static str, kind: SpanKind, parent: &Context) -> Trace {
        let span = collected.tracer.span_builder(name).with_kind(kind);
        let span = collected.tracer.build_with_context(span, parent);
        let context = parent.with_span(span);
        Trace(Some(Arc::new(Running { collected: Arc::clone(collected), context })))
    }

    /// The span of something that this one asks of somebody else, from now on.
    pub fn asks(&self, name: &'static str) -> Trace {
        let Some(running) = &self.0 else { return Trace::default() };
        Trace::begin(&running.collected, name, SpanKind::Client, &running.context)
    }

    /// The headers by which whoever is asked takes it up; none where there is no span.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(running) = &self.0 {
            TraceContextPropagator::new().inject_context(&running.context, &mut HeaderInjector(&mut headers));
        }
        headers
    }

    /// What it is called in the end.
    pub fn rename(&self, name: impl FnOnce() -> String) {
        if let Some(running) = &self.0 {
            running.context.span().update_name(Cow::Owned(name()));
        }
    }

    /// What is known of it, found out only where somebody wants to know.
    pub fn note<T: Into<Value>>(&self, key: &'static str, value: impl FnOnce() -> Option<T>) {
        if let Some(running) = &self.0
            && let Some(value) = value()
        {
            running.context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// It ends now; with what went wrong, where something did.
    pub fn end(&self, error: Option<&str>) {
        let Some(running) = &self.0 else { return };
        if let Some(error) = error {
            running.context.span().set_status(Status::error(error.to_owned()));
        }
        running.context.span().end();
    }
}

#[async_trait]
impl HttpClient for Post {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let work = async move {
            let answer = client.request(request.map(Full::new)).await?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await?;
            Ok::<_, HttpError>(Response::from_parts(head, body.to_bytes()))
        };
        // The clock is the runtime's too.
        let sending = self.runtime.spawn(async move { tokio::time::timeout(PATIENCE, work).await });
        let sent = match sending.await {
            Ok(Ok(sent)) => sent,
            Ok(Err(_)) => Err(format!("no answer within {PATIENCE:?}").into()),
            Err(gone) => Err(gone.into()),
        };
        self.tell(&sent);
        sent
    }
}

impl Post {
    /// Once for as long as it goes on.
    fn tell(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let trouble = match sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered with status {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let failed_before = self.fails.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !failed_before => {
                tracing::warn!(
                    error,
                    "the collector of trace.endpoint takes no spans; they are dropped meanwhile"
                );
            }
            None if failed_before => tracing::info!("the collector of trace.endpoint takes spans again"),
            _ => {}
        }
    }
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").finish_non_exhaustive()
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.0.is_some()).finish()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.0.is_some()).finish()
    }
}
