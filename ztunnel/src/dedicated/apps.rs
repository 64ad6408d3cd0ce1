//! What kubelet asks a pod's applications, asked in its stead: its own probes come from the node, in the clear and without an
//! identity, and would be refused by STRICT and by policies.
//!
//! Enters: `GET /app-health/<container>/<livez, readyz or startupz>` at the readiness port, which is exempt from capture. Leaves: 200,
//! or 503 and why not. What is asked then was written into the pod when it was made (`ISTIO_KUBE_APP_PROBERS`, as Istio's agent has
//! it): anybody may have the question put, and nobody chooses it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::machine::{Header, Http, Probe, Tcp, probe::Check};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::probe::{Rules, once};
use crate::config::{Config, Mode};

/// What to ask, by the path at which it is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probers(Arc<BTreeMap<String, Probe>>);

/// As Istio writes it: the handler of a probe, its port by number.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
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

impl Probers {
    /// From the variable; empty text is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let asked: BTreeMap<String, Asked> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let probes = asked.into_iter().map(|(path, asked)| {
            let probe = asked.probe().map_err(|why| format!("{path}: {why}"))?;
            Ok((path, probe))
        });
        Ok(Self(Arc::new(probes.collect::<Result<_, String>>()?)))
    }
}

impl Asked {
    fn probe(self) -> Result<Probe, String> {
        let check = match (self.http_get, self.tcp_socket) {
            (Some(http), None) => {
                if !matches!(&*http.scheme, "" | "HTTP") {
                    return Err(format!("scheme {:?} is not asked", http.scheme));
                }
                let headers = http.http_headers.into_iter();
                let headers = headers.map(|Named { name, value }| Header { name, value });
                Check::Http(Http {
                    port: http.port.into(),
                    path: http.path,
                    host: String::new(),
                    headers: headers.collect(),
                })
            }
            (None, Some(tcp)) => Check::Tcp(Tcp {
                port: tcp.port.into(),
                host: String::new(),
            }),
            _ => return Err("neither httpGet nor tcpSocket, or both".to_owned()),
        };
        Ok(Probe {
            timeout_seconds: self.timeout_seconds.max(1),
            check: Some(check),
            ..Probe::default()
        })
    }
}

/// Who asks.
struct Asker {
    probers: Probers,
    rules: Rules,
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
        host,
        places: Semaphore::new(AT_ONCE),
    };
    let router = Router::new().route("/app-health/{container}/{question}", get(answer));
    Some(router.with_state(Arc::new(asker)))
}

async fn answer(State(asker): State<Arc<Asker>>, uri: Uri) -> Response {
    let Some(probe) = asker.probers.0.get(uri.path()) else {
        return plain(StatusCode::NOT_FOUND, "no such probe\n".to_owned());
    };
    let Ok(_place) = asker.places.try_acquire() else {
        let busy = "too many probes at once\n".to_owned();
        return plain(StatusCode::SERVICE_UNAVAILABLE, busy);
    };
    match asker.ask(probe).await {
        Ok(()) => plain(StatusCode::OK, "ok\n".to_owned()),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

impl Asker {
    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let mut probe = probe.clone();
        match &mut probe.check {
            Some(Check::Http(http)) => http.host.clone_from(&self.host),
            Some(Check::Tcp(tcp)) => tcp.host.clone_from(&self.host),
            _ => {}
        }
        let patience = Duration::from_secs(probe.timeout_seconds.into());
        let answered = tokio::time::timeout(patience, once(&self.rules, &probe)).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
    }
}

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
                    "httpHeaders": [{{"name": "Accept", "value": "text/plain"}}]}}, "timeoutSeconds": 2}}}}"#
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
        let text = format!(r#"{{"/app-health/web/livez": {{"tcpSocket": {{"port": {port}}}}}}}"#);
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
