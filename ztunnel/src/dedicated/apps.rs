//! What kubelet asks a pod's applications, asked in its stead: its own probes come from the node, in the clear and without an
//! identity, and would be refused by STRICT and by policies.
//!
//! Enters: `GET /app-health/<container>/<livez, readyz or startupz>` at the readiness port, which is exempt from capture. Leaves: 200,
//! or 503 and why not. What is asked then was written into the pod when it was made (`ISTIO_KUBE_APP_PROBERS`, as Istio's agent has
//! it): anybody may have the question put, and nobody chooses it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::machine::{Header, Http, Probe, Tcp, probe::Check};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hbone::control_plane::Dialler;
use http::uri::PathAndQuery;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tonic_prost::ProstCodec;

use super::probe::{Rules, once};
use crate::config::{Config, Mode};

/// What to ask, by the path at which it is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probers(Arc<BTreeMap<String, Question>>);

#[derive(Debug, Clone, PartialEq)]
struct Question {
    way: Way,
    patience: Duration,
}

#[derive(Debug, Clone, PartialEq)]
enum Way {
    /// As of a machine's application.
    Check(Check),
    /// gRPC's health check.
    Health { port: u16, service: String },
}

/// As Istio writes it: the handler of a probe, its port by number.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    #[serde(default)]
    timeout_seconds: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct TcpSocket {
    port: u16,
}

#[derive(Deserialize)]
struct Grpc {
    port: u16,
    /// Null where it is the server as a whole.
    service: Option<String>,
}

impl Probers {
    /// From the variable; empty text is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let asked: BTreeMap<String, Asked> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let questions = asked.into_iter().map(|(path, asked)| {
            let question = asked.question().map_err(|why| format!("{path}: {why}"))?;
            Ok((path, question))
        });
        Ok(Self(Arc::new(questions.collect::<Result<_, String>>()?)))
    }
}

impl Asked {
    fn question(self) -> Result<Question, String> {
        let way = match (self.http_get, self.tcp_socket, self.grpc) {
            (Some(http), None, None) => {
                if !matches!(&*http.scheme, "" | "HTTP") {
                    return Err(format!("scheme {:?} is not asked", http.scheme));
                }
                let headers = http.http_headers.into_iter();
                let headers = headers.map(|Named { name, value }| Header { name, value });
                Way::Check(Check::Http(Http {
                    port: http.port.into(),
                    path: http.path,
                    host: String::new(),
                    headers: headers.collect(),
                }))
            }
            (None, Some(tcp), None) => Way::Check(Check::Tcp(Tcp {
                port: tcp.port.into(),
                host: String::new(),
            })),
            (None, None, Some(grpc)) => Way::Health {
                port: grpc.port,
                service: grpc.service.unwrap_or_default(),
            },
            _ => return Err("not one of httpGet, tcpSocket and grpc".to_owned()),
        };
        Ok(Question {
            way,
            patience: Duration::from_secs(self.timeout_seconds.max(1).into()),
        })
    }
}

/// Who asks.
struct Asker {
    probers: Probers,
    rules: Rules,
    dialler: Dialler,
    /// The pod's address, which is where kubelet would ask.
    host: String,
    places: Semaphore,
}

/// Where it is asked for; none where nothing is.
pub(crate) fn door(config: &Config) -> Option<Router> {
    if config.mode != Mode::Dedicated || config.app_probers.0.is_empty() {
        return None;
    }
    let own = config.own_ip();
    let host = match own.is_loopback() || own.is_unspecified() {
        true => String::new(),
        false => own.to_string(),
    };
    let asker = Asker {
        probers: config.app_probers.clone(),
        rules: Rules::of(config),
        dialler: config.dialler(),
        host,
        places: Semaphore::new(AT_ONCE),
    };
    let router = Router::new().route("/app-health/{container}/{question}", get(answer));
    Some(router.with_state(Arc::new(asker)))
}

async fn answer(State(asker): State<Arc<Asker>>, uri: Uri) -> Response {
    let Some(question) = asker.probers.0.get(uri.path()) else {
        return plain(StatusCode::NOT_FOUND, "no such probe\n".to_owned());
    };
    let Ok(_place) = asker.places.try_acquire() else {
        let busy = "too many probes at once\n".to_owned();
        return plain(StatusCode::SERVICE_UNAVAILABLE, busy);
    };
    match asker.ask(question).await {
        Ok(()) => plain(StatusCode::OK, "ok\n".to_owned()),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

impl Asker {
    async fn ask(&self, question: &Question) -> Result<(), String> {
        let patience = question.patience;
        let asking = async {
            match &question.way {
                Way::Check(check) => once(&self.rules, &self.probe(check)).await,
                Way::Health { port, service } => self.health(*port, service).await,
            }
        };
        let answered = tokio::time::timeout(patience, asking).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
    }

    fn probe(&self, check: &Check) -> Probe {
        let mut check = check.clone();
        match &mut check {
            Check::Http(http) => http.host.clone_from(&self.host),
            Check::Tcp(tcp) => tcp.host.clone_from(&self.host),
            Check::Exec(_) => {}
        }
        Probe {
            check: Some(check),
            ..Probe::default()
        }
    }

    /// On a connection of its own, as kubelet does.
    async fn health(&self, port: u16, service: &str) -> Result<(), String> {
        let host = match &*self.host {
            "" => "127.0.0.1".to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]"),
            host => host.to_owned(),
        };
        let url = format!("http://{host}:{port}");
        let failed = |error: &dyn std::fmt::Display| format!("port {port}: {error}");
        let channel = self.dialler.channel(&url, Path::new(""), None);
        let mut grpc = tonic::client::Grpc::new(channel.map_err(|error| failed(&error))?);
        grpc.ready().await.map_err(|error| failed(&error))?;
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        match answer
            .map_err(|status| failed(&status.message()))?
            .get_ref()
            .status
        {
            SERVING => Ok(()),
            other => Err(format!("port {port}: health status {other}")),
        }
    }
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

fn plain(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain")], text).into_response()
}

/// Kubelet asks three times a container, as often as each second; more is somebody else.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use clap::Parser as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tower::ServiceExt as _;

    use super::*;

    fn config(probers: &str) -> Config {
        let line = ["ztunnel", "--mode", "dedicated", "--workload", "a/b/c"];
        let probers = ["--app-probers", probers, "--packet-mark", "0"];
        Config::try_parse_from([&line[..], &probers].concat()).unwrap()
    }

    async fn asked(door: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = door.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1024).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Answers each request with `status`; what it was asked goes to the task's end.
    async fn app(status: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 1024];
            let read = stream.read(&mut heard).await.unwrap();
            heard.truncate(read);
            let answer = format!("HTTP/1.1 {status}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(heard).unwrap()
        });
        (port, served)
    }

    #[tokio::test]
    async fn what_kubelet_would_have_asked_is_asked_and_its_answer_told() {
        for (status, expected) in [
            ("200 OK", StatusCode::OK),
            ("302 Found", StatusCode::OK),
            ("503 No", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let (port, served) = app(status).await;
            let text = format!(
                r#"{{"/app-health/web/readyz": {{"httpGet": {{"path": "/ready", "port": {port},
                    "httpHeaders": [{{"name": "Accept", "value": "text/plain"}}]}}, "timeoutSeconds": 60}}}}"#
            );
            let door = door(&config(&text)).unwrap();
            let (told, text) = asked(&door, "/app-health/web/readyz").await;
            assert_eq!(told, expected, "{text}");
            let heard = served.await.unwrap();
            assert!(heard.starts_with("GET /ready HTTP/1.1\r\n"), "{heard}");
            assert!(heard.contains("Accept: text/plain\r\n"), "{heard}");
            // The probe is there, the application no longer.
            let (told, text) = asked(&door, "/app-health/web/readyz").await;
            assert_eq!(told, StatusCode::SERVICE_UNAVAILABLE, "{text}");
        }
    }

    #[tokio::test]
    async fn a_port_is_dialled_and_what_nobody_wrote_is_not_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!(
            r#"{{"/app-health/web/livez": {{"tcpSocket": {{"port": {port}}}, "timeoutSeconds": 60}}}}"#
        );
        let door = door(&config(&text)).unwrap();
        assert_eq!(
            asked(&door, "/app-health/web/livez").await.0,
            StatusCode::OK
        );
        for other in ["/app-health/web/readyz", "/app-health/other/livez"] {
            assert_eq!(asked(&door, other).await.0, StatusCode::NOT_FOUND);
        }
        drop(listener);
        let (told, _) = asked(&door, "/app-health/web/livez").await;
        assert_eq!(told, StatusCode::SERVICE_UNAVAILABLE);
    }

    /// gRPC's health service: the status of service `web` is `status`, of others none.
    #[derive(Clone)]
    struct Health(i32);

    impl tonic::server::NamedService for Health {
        const NAME: &'static str = "grpc.health.v1.Health";
    }

    impl tower::Service<Request<tonic::body::Body>> for Health {
        type Response = http::Response<tonic::body::Body>;
        type Error = std::convert::Infallible;
        type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
            let health = self.clone();
            let codec = ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
            Box::pin(
                async move { Ok(tonic::server::Grpc::new(codec).unary(health, request).await) },
            )
        }
    }

    impl tonic::server::UnaryService<HealthCheckRequest> for Health {
        type Response = HealthCheckResponse;
        type Future = std::future::Ready<Result<tonic::Response<Self::Response>, tonic::Status>>;

        fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
            let known = request.get_ref().service == "web";
            let answer = HealthCheckResponse { status: self.0 };
            std::future::ready(match known {
                true => Ok(tonic::Response::new(answer)),
                false => Err(tonic::Status::not_found("no such service")),
            })
        }
    }

    #[tokio::test]
    async fn health_is_asked_over_grpc_and_only_serving_is_well() {
        for (status, service, expected) in [
            (1, "web", StatusCode::OK),
            (2, "web", StatusCode::SERVICE_UNAVAILABLE),
            (1, "other", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(Health(status));
            let served = tokio::spawn(server.serve_with_incoming(incoming));
            let text = format!(
                r#"{{"/app-health/web/livez": {{"grpc": {{"port": {port}, "service": "{service}"}}, "timeoutSeconds": 5}}}}"#
            );
            let door = door(&config(&text)).unwrap();
            let (told, text) = asked(&door, "/app-health/web/livez").await;
            assert_eq!(told, expected, "{text}");
            served.abort();
            let _ = served.await;
            let (told, text) = asked(&door, "/app-health/web/livez").await;
            assert_eq!(told, StatusCode::SERVICE_UNAVAILABLE, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_when_it_is_read() {
        assert_eq!(Probers::parse(""), Ok(Probers::default()));
        for wrong in [
            "no JSON",
            r#"{"/a": {}}"#,
            r#"{"/a": {"httpGet": {"port": "http"}}}"#,
            r#"{"/a": {"httpGet": {"port": 1, "scheme": "HTTPS"}}}"#,
            r#"{"/a": {"httpGet": {"port": 1}, "tcpSocket": {"port": 1}}}"#,
        ] {
            assert!(Probers::parse(wrong).is_err(), "{wrong}");
        }
        assert!(door(&config("")).is_none());
    }
}
