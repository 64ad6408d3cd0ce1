//! Pure: a collector, and records in its words.
//!
//! | protocol | |
//! |---|---|
//! | OTLP over gRPC | `…TraceService/Export`, `…LogsService/Export` |
//! | OTLP over HTTP | the same message, POST |
//! | Zipkin | JSON of version 2, POST (`zipkin`) |

use std::sync::Arc;
use std::time::Duration;

use api::otlp;
use api::waypoint as wire;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderName, HeaderValue, Method, Request, Version};
use prost::Message;

use super::queue::Record;
use super::{attribute, zipkin};
use crate::route::ServiceName;
use crate::service::framed;

/// Who gets records, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Collector {
    /// The provider.
    pub key: Arc<str>,
    /// Where it is.
    pub service: ServiceName,
    /// A message that takes longer has failed.
    pub timeout: Duration,
    protocol: Protocol,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Of log records: who says them.
    log_name: Option<Box<str>>,
    /// Our environment says more of us.
    environment: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Protocol {
    Grpc,
    Http(Box<str>),
    Zipkin { path: Box<str>, short: bool },
}

impl Collector {
    /// Of spans.
    ///
    /// # Errors
    /// What of it cannot be understood.
    pub fn of_traces(key: &Arc<str>, wire: &wire::TraceCollector) -> Result<Self, String> {
        use wire::trace_collector::Protocol as Said;
        let path = |usual: &str| match wire.path.as_str() {
            "" => usual.into(),
            said if said.starts_with('/') => said.into(),
            said => format!("/{said}").into(),
        };
        let headers = wire.headers.iter().map(|header| {
            let name = HeaderName::try_from(&header.name);
            let value = HeaderValue::try_from(&header.value);
            let wrong = || format!("header {:?} is none", header.name);
            Ok((name.map_err(|_| wrong())?, value.map_err(|_| wrong())?))
        });
        Ok(Self {
            key: key.clone(),
            service: service(wire.service.as_ref())?,
            timeout: timeout(wire.timeout),
            protocol: match wire.protocol() {
                Said::OtlpGrpc => Protocol::Grpc,
                Said::OtlpHttp => Protocol::Http(path("/v1/traces")),
                Said::Zipkin => Protocol::Zipkin {
                    path: path("/api/v2/spans"),
                    short: wire.short_ids,
                },
            },
            headers: headers.collect::<Result<_, String>>()?,
            log_name: None,
            environment: wire.environment,
        })
    }

    /// Of log records.
    ///
    /// # Errors
    /// What of it cannot be understood.
    pub fn of_logs(key: &Arc<str>, wire: &wire::LogCollector) -> Result<Self, String> {
        let name = wire.log_name.as_str();
        Ok(Self {
            key: key.clone(),
            service: service(wire.service.as_ref())?,
            timeout: timeout(wire.timeout),
            protocol: Protocol::Grpc,
            headers: Vec::new(),
            log_name: Some(if name.is_empty() { LOG_NAME } else { name }.into()),
            environment: false,
        })
    }

    /// Whether it is asked over HTTP/2.
    pub fn speaks_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// Records as a request.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn request(&self, records: &[Record], own: &Own) -> Result<Request<Bytes>, String> {
        let (path, kind, body) = match &self.protocol {
            Protocol::Grpc if self.log_name.is_some() => {
                let body = framed(&self.lines(records, own))?;
                (LOGS, "application/grpc", body)
            }
            Protocol::Grpc => {
                let body = framed(&self.spans(records, own))?;
                (TRACES, "application/grpc", body)
            }
            Protocol::Http(path) => {
                let body = self.spans(records, own).encode_to_vec().into();
                (&**path, "application/x-protobuf", body)
            }
            Protocol::Zipkin { path, short } => {
                let body = zipkin::json(records, own, *short);
                (&**path, "application/json", body)
            }
        };
        let ServiceName { hostname, port, .. } = &self.service;
        let grpc = self.speaks_grpc();
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{hostname}:{port}{path}"))
            .header(CONTENT_TYPE, kind);
        if grpc {
            let millis = self.timeout.as_millis().min(99_999_999);
            request = request
                .version(Version::HTTP_2)
                .header(TE, "trailers")
                .header("grpc-timeout", format!("{millis}m"));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body);
        request.map_err(|why| why.to_string())
    }

    fn resource(&self, own: &Own) -> otlp::Resource {
        let mut attributes = vec![
            attribute("service.name", own.service.as_str()),
            attribute("k8s.namespace.name", own.namespace.as_str()),
            attribute("k8s.pod.name", own.pod.as_str()),
            attribute("k8s.cluster.name", own.cluster.as_str()),
            attribute("telemetry.sdk.name", "ambit"),
            attribute("telemetry.sdk.language", "rust"),
            attribute("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        if let Some(name) = &self.log_name {
            attributes.push(attribute("log_name", &**name));
        }
        if self.environment {
            let said = own.attributes.iter();
            attributes.extend(said.map(|(name, value)| attribute(name, value.as_str())));
        }
        otlp::Resource { attributes }
    }

    fn spans(&self, records: &[Record], own: &Own) -> otlp::ExportTraceServiceRequest {
        let spans = records.iter().filter_map(|record| match record {
            Record::Span(span) => Some(otlp::Span::clone(span)),
            Record::Line(_) => None,
        });
        otlp::ExportTraceServiceRequest {
            resource_spans: vec![otlp::ResourceSpans {
                resource: Some(self.resource(own)),
                scope_spans: vec![otlp::ScopeSpans {
                    scope: Some(scope()),
                    spans: spans.collect(),
                }],
            }],
        }
    }

    fn lines(&self, records: &[Record], own: &Own) -> otlp::ExportLogsServiceRequest {
        let lines = records.iter().filter_map(|record| match record {
            Record::Line(line) => Some(otlp::LogRecord::clone(line)),
            Record::Span(_) => None,
        });
        otlp::ExportLogsServiceRequest {
            resource_logs: vec![otlp::ResourceLogs {
                resource: Some(self.resource(own)),
                scope_logs: vec![otlp::ScopeLogs {
                    scope: Some(scope()),
                    log_records: lines.collect(),
                }],
            }],
        }
    }
}

/// Who reports.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// `waypoint.namespace`
    pub service: String,
    /// Of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Where it runs.
    pub cluster: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`
    pub attributes: Vec<(String, String)>,
}

impl Own {
    /// `a=b,c=d`, as the environment says it; what is not like that is left out.
    pub fn attributes(text: &str) -> Vec<(String, String)> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .filter(|(name, _)| !name.is_empty())
            .take(64)
            .collect()
    }
}

fn scope() -> otlp::InstrumentationScope {
    otlp::InstrumentationScope {
        name: "ambit.waypoint".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn service(wire: Option<&wire::ServiceRef>) -> Result<ServiceName, String> {
    let wire = wire.ok_or("it has no service")?;
    ServiceName::compile(wire)
}

fn timeout(millis: u64) -> Duration {
    match millis {
        0 => Duration::from_secs(5),
        millis => Duration::from_millis(millis),
    }
}

const LOG_NAME: &str = "otel_envoy_accesslog";
const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
