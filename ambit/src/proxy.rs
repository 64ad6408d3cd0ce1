//! Asking a pod over HTTP, by way of the API server.
//!
//! [`ask`] uses the API server's own proxy, for ports that listen on the pod's address;
//! [`ask_inside`] a port-forward, for those that listen on its loopback alone.

use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

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

/// `GET path` of `port` on the loopback of a pod.
pub(crate) async fn ask_inside(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let talk = async {
        let mut forward = pods.portforward(pod, &[port]).await?;
        let stream = forward
            .take_stream(port)
            .ok_or_else(|| anyhow::anyhow!("port {port} was not forwarded"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let request = http::Request::get(path)
            .header(http::header::HOST, "localhost")
            .body(http_body_util::Empty::<hyper::body::Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        driving.abort();
        anyhow::ensure!(status.is_success(), "{path} of {pod} answered {status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(PATIENCE, talk).await?
}

/// For a pod that does not answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
/// A dump of a hundred thousand workloads is about 150 MiB.
const LARGEST: usize = 512 * 1024 * 1024;
