//! Asking a proxy over HTTP: a pod by way of the API server, or an address.
//!
//! [`ask`] uses the API server's own proxy, for ports that listen on the pod's address;
//! [`ask_inside`] a port-forward, for those that listen on its loopback alone; [`ask_at`] an address
//! that somebody has made reachable.

use std::fmt;

use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// `GET path` of `port` of a pod; the body, or why there is none, in one line.
pub(crate) async fn ask(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, String> {
    let url = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
    let request = http::Request::get(url)
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(PATIENCE, client.request_text(request)).await;
    match answer {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(kube::Error::Api(refusal))) => Err(refusal.message.clone()),
        Ok(Err(error)) => Err(crate::cluster::innermost(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// Why a proxy's page was not had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It was not reached, or broke off.
    Unreached(String),
    /// It answered, with this status and these words.
    Says(u16, String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreached(why) => f.write_str(why),
            Self::Says(status, words) => {
                let line = words.lines().next().unwrap_or_default();
                write!(f, "answered {status}: {line}")
            }
        }
    }
}

impl std::error::Error for Trouble {}

/// `GET path` of `port` on the loopback of a pod; no more than `most` bytes of it.
pub(crate) async fn ask_inside(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
    most: usize,
) -> Result<String, Trouble> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    in_time(async {
        let forwarded = pods.portforward(pod, &[port]).await;
        let mut forward = forwarded.map_err(|error| unreached(&error))?;
        let stream = forward
            .take_stream(port)
            .ok_or_else(|| Trouble::Unreached(format!("port {port} was not forwarded")))?;
        get(stream, path, most).await
    })
    .await
}

/// `GET path` at an address, `host:port`.
pub(crate) async fn ask_at(address: &str, path: &str) -> Result<String, Trouble> {
    in_time(async {
        let connected = TcpStream::connect(address).await;
        let stream = connected.map_err(|error| unreached(&error))?;
        get(stream, path, LARGEST).await
    })
    .await
}

async fn in_time(answer: impl Future<Output = Result<String, Trouble>>) -> Result<String, Trouble> {
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", PATIENCE.as_secs());
        Err(Trouble::Unreached(why))
    })
}

async fn get<S>(stream: S, path: &str, most: usize) -> Result<String, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| unreached(&error))?;
    let driving = Driven(tokio::spawn(connection));
    let request = http::Request::get(path)
        .header(http::header::HOST, "localhost")
        .body(http_body_util::Empty::<hyper::body::Bytes>::new())
        .map_err(|error| unreached(&error))?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| unreached(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), most).collect().await;
    let body = body.map_err(|error| Trouble::Unreached(error.to_string()))?;
    drop(driving);
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    match status.is_success() {
        true => Ok(text),
        false => Err(Trouble::Says(status.as_u16(), text)),
    }
}

/// A connection that is driven for as long as somebody waits for its answer.
struct Driven(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn unreached(error: &dyn std::error::Error) -> Trouble {
    Trouble::Unreached(crate::cluster::innermost(error))
}

/// For a pod that does not answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
/// A dump of a hundred thousand workloads is about 150 MiB.
pub(crate) const LARGEST: usize = 512 * 1024 * 1024;
