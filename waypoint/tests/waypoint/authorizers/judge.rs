//! A judge in a pod, who knows one user: `anna`. He waits for ever about `slow` and `waits`, and breaks about `broken`. Over
//! gRPC he lets connections of `sa/client` be, changes the query of whatever is asked below `/grpc/query`, and says something of what is asked at `/grpc/said`.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use ::http::{Request, Response, StatusCode};
use anyhow::Result;
use api::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use api::ext_authz::check_response::HttpResponse as Said;
use api::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, QueryParameter, Status,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use lab::Pod;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::app::text;
use crate::shop::Shop;

/// What he is doing about `waits`.
#[derive(Clone, Default)]
pub(super) struct Judge {
    /// He was asked.
    pub(super) asked: Arc<Notify>,
    /// Nobody wants to know it any more.
    pub(super) let_go: Arc<Notify>,
}

struct LetGo(Arc<Notify>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Judge {
    /// Service `shop/judge`.
    pub(super) fn start(shop: &Shop<'_>) -> Result<Self> {
        let pod = shop.lab.pod("shop/judge").node(0);
        let pod = pod.service_account("judge").label("app", "judge").start()?;
        let judge = Self::default();
        let _in = shop.runtime.enter();
        let listener = listen(&pod, 9000)?;
        let server = AuthorizationServer::new(judge.clone());
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let service = TowerToHyperService::new(server.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        let listener = listen(&pod, 8000)?;
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let service = service_fn(plainly);
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        let ports = [
            ("grpc", 9000, 9000),
            ("http", 8000, 8000),
            ("nobody", 9100, 9100),
        ];
        shop.lab.service_of("shop/judge", &ports)?;
        // The pod is the lab's, and goes with it.
        Ok(judge)
    }
}

fn listen(pod: &Pod, port: u16) -> Result<TcpListener> {
    let listener = pod.listen(port)?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

#[tonic::async_trait]
impl Authorization for Judge {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let client = attributes.source.unwrap().principal;
        let Some(http) = attributes.request.and_then(|it| it.http) else {
            // Of a connection he knows who wants it.
            let code = if client.ends_with("/sa/client") { 0 } else { 7 };
            return Ok(tonic::Response::new(CheckResponse {
                status: Some(Status {
                    code,
                    ..Default::default()
                }),
                ..Default::default()
            }));
        };
        let user = http.headers.get("x-user").cloned().unwrap_or_default();
        let (code, said) = match &*user {
            "slow" => pending().await,
            "waits" => {
                let _held = LetGo(self.let_go.clone());
                self.asked.notify_one();
                pending().await
            }
            "broken" => return Err(tonic::Status::internal("he is ill")),
            "anna" => (
                0,
                Said::OkResponse(OkHttpResponse {
                    query_parameters_to_set: parameters(&http.path),
                    query_parameters_to_remove: match http.path.starts_with("/grpc/query") {
                        true => vec!["key".to_owned()],
                        false => Vec::new(),
                    },
                    headers: vec![header("x-judged", "grpc")],
                    headers_to_remove: vec!["x-secret".to_owned()],
                    response_headers_to_add: vec![
                        header("x-client", &client),
                        header("x-shown", &http.body),
                    ],
                    ..Default::default()
                }),
            ),
            user => (
                7,
                Said::DeniedResponse(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 418 }),
                    headers: vec![header("x-why", "unknown")],
                    body: format!("{user} is not known"),
                }),
            ),
        };
        Ok(tonic::Response::new(CheckResponse {
            status: Some(Status {
                code,
                ..Default::default()
            }),
            http_response: Some(said),
            dynamic_metadata: http.path.strip_prefix("/grpc/said?").map(verdict),
        }))
    }
}

/// What he sets of a query: below `broken` something that would be two parameters.
fn parameters(path: &str) -> Vec<QueryParameter> {
    let Some(rest) = path.strip_prefix("/grpc/query") else {
        return Vec::new();
    };
    let value = match rest.starts_with("/broken") {
        true => "anna&admin=1",
        false => "anna",
    };
    vec![QueryParameter {
        key: "tenant".to_owned(),
        value: value.to_owned(),
    }]
}

/// What he says of a request.
fn verdict(word: &str) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let verdict = value(Kind::StringValue(word.to_owned()));
    let score = value(Kind::NumberValue(3.0));
    Struct {
        fields: [("verdict".to_owned(), verdict), ("score".to_owned(), score)].into(),
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn plainly(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let user = text(request.headers(), "x-user");
    let secret = request.headers().contains_key("x-secret");
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let answer = Response::builder().header("x-else", "1");
    Ok(match &*user {
        // He is shown what the provider says, and no more.
        _ if secret => answer.status(StatusCode::OK).body(Full::default()),
        "anna" => {
            let body = String::from_utf8_lossy(&body);
            let answer = answer.header("x-judged", "http");
            let answer = answer.header("x-seen", format!("{path} {body}").trim_end());
            answer.body(Full::default())
        }
        "broken" => answer
            .status(StatusCode::INTERNAL_SERVER_ERROR)
            .body(Full::default()),
        _ => answer
            .status(StatusCode::UNAUTHORIZED)
            .header("www-authenticate", "Judge")
            .header("x-why", "unknown")
            .body(Full::from("who are you?")),
    }
    .unwrap())
}
