//! A collector in a pod: OTLP over gRPC on 4317, anything over HTTP on 4318. It keeps what it is told.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use ::http::{HeaderMap, Request, Response};
use anyhow::Result;
use api::otlp::logs_service_server::{LogsService, LogsServiceServer};
use api::otlp::trace_service_server::{TraceService, TraceServiceServer};
use api::otlp::{
    ExportLogsServiceRequest, ExportLogsServiceResponse, ExportTraceServiceRequest,
    ExportTraceServiceResponse, KeyValue, LogRecord, Resource, Span, any_value,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use lab::Pod;
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::shop::Shop;

/// What it was told.
#[derive(Clone, Default)]
pub(super) struct Collector(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    spans: Vec<(Resource, Span)>,
    lines: Vec<(Resource, LogRecord)>,
    plain: Vec<(String, HeaderMap, Bytes)>,
}

impl Collector {
    /// Service `shop/collector`.
    pub(super) fn start(shop: &Shop<'_>) -> Result<Self> {
        let pod = shop.lab.pod("shop/collector").node(0);
        let pod = pod.service_account("collector");
        let pod = pod.label("app", "collector").start()?;
        let collector = Self::default();
        let _in = shop.runtime.enter();
        let listener = listen(&pod, 4317)?;
        let routes = Routes::new(TraceServiceServer::new(collector.clone()))
            .add_service(LogsServiceServer::new(collector.clone()));
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let service = TowerToHyperService::new(routes.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        let (listener, plain) = (listen(&pod, 4318)?, collector.clone());
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let plain = plain.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| plain.clone().plainly(request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        let ports = [
            ("grpc", 4317, 4317),
            ("http", 4318, 4318),
            ("nobody", 4319, 4319),
        ];
        shop.lab.service_of("shop/collector", &ports)?;
        Ok(collector)
    }

    async fn plainly(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        if let Ok(body) = body.collect().await {
            let path = head.uri.path().to_owned();
            let mut told = self.0.lock().unwrap();
            told.plain.push((path, head.headers, body.to_bytes()));
        }
        Ok(Response::default())
    }

    /// Spans of requests for a path.
    pub(super) fn spans(&self, path: &str) -> Vec<(Resource, Span)> {
        let told = self.0.lock().unwrap();
        let ours = |(_, span): &&(Resource, Span)| {
            let url = attribute(&span.attributes, "http.url");
            url.is_some_and(|url| url.ends_with(path))
        };
        told.spans.iter().filter(ours).cloned().collect()
    }

    /// Log records that have that text in an attribute or body.
    pub(super) fn lines(&self, text: &str) -> Vec<(Resource, LogRecord)> {
        let told = self.0.lock().unwrap();
        let ours = |(_, line): &&(Resource, LogRecord)| format!("{line:?}").contains(text);
        told.lines.iter().filter(ours).cloned().collect()
    }

    /// What came over HTTP for a path.
    pub(super) fn plain(&self, path: &str) -> Vec<(HeaderMap, Bytes)> {
        let told = self.0.lock().unwrap();
        let ours = told.plain.iter().filter(|(at, _, _)| at == path);
        ours.map(|(_, headers, body)| (headers.clone(), body.clone()))
            .collect()
    }
}

/// A text among attributes.
pub(super) fn attribute(all: &[KeyValue], name: &str) -> Option<String> {
    let found = all.iter().find(|it| it.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for of in request.into_inner().resource_spans {
            let resource = of.resource.unwrap_or_default();
            let spans = of.scope_spans.into_iter().flat_map(|it| it.spans);
            let mut told = self.0.lock().unwrap();
            told.spans.extend(spans.map(|it| (resource.clone(), it)));
        }
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        for of in request.into_inner().resource_logs {
            let resource = of.resource.unwrap_or_default();
            let lines = of.scope_logs.into_iter().flat_map(|it| it.log_records);
            let mut told = self.0.lock().unwrap();
            told.lines.extend(lines.map(|it| (resource.clone(), it)));
        }
        Ok(tonic::Response::new(Default::default()))
    }
}

fn listen(pod: &Pod, port: u16) -> Result<TcpListener> {
    let listener = pod.listen(port)?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}
