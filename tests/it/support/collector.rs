//! Takes spans as an OpenTelemetry collector does (OTLP over HTTP, protobuf), and keeps them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use tokio::net::TcpListener;

/// A collector on a free port.
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    status: StatusCode,
    posts: usize,
    spans: Vec<Span>,
}

/// What a span says, in words.
#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    /// 2 is a server's, 3 a client's.
    pub kind: i32,
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub failed: Option<String>,
    pub service: String,
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    pub async fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kept = Arc::new(Mutex::new(Kept { status: StatusCode::OK, posts: 0, spans: Vec::new() }));
        let own = Arc::clone(&kept);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = Arc::clone(&own);
                let service = service_fn(move |request| take(request, Arc::clone(&own)));
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        Collector { address, kept }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it answers from now on.
    pub fn answer(&self, status: StatusCode) {
        self.kept.lock().unwrap().status = status;
    }

    /// How often something was sent.
    pub fn posts(&self) -> usize {
        self.kept.lock().unwrap().posts
    }

    pub fn spans(&self) -> Vec<Span> {
        self.kept.lock().unwrap().spans.clone()
    }
}

async fn take(
    request: Request<Incoming>,
    kept: Arc<Mutex<Kept>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_spans = request.method() == "POST" && request.uri().path() == "/v1/traces";
    let is_protobuf = request.headers()["content-type"] == "application/x-protobuf";
    assert!(is_spans && is_protobuf, "{request:?}");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let sent = ExportTraceServiceRequest::decode(body).unwrap();
    let mut kept = kept.lock().unwrap();
    kept.posts += 1;
    if kept.status.is_success() {
        for resource in sent.resource_spans {
            let service = resource.resource.map(|resource| words(&resource.attributes)).unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.spans.extend(spans.map(|span| Span {
                name: span.name,
                kind: span.kind,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                failed: span.status.filter(|status| status.code == 2).map(|status| status.message),
                service: service.get("service.name").cloned().unwrap_or_default(),
                attributes: words(&span.attributes),
            }));
        }
    }
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = kept.status;
    Ok(answer)
}

fn words(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let word = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some((pair.key.clone(), text.clone())),
        Value::IntValue(number) => Some((pair.key.clone(), number.to_string())),
        other => panic!("{other:?}"),
    };
    attributes.iter().filter_map(word).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
