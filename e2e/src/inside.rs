//! What a pod serves on its loopback alone, by port-forward.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

use crate::mesh::SYSTEM;

/// Asks the admin port of a ztunnel; its answer.
pub async fn ztunnel(client: &Client, pod: &str, method: Method, path: &str) -> Result<String> {
    ask(client, pod, 15000, method, path)
        .await
        .with_context(|| format!("{path} of {pod}"))
}

async fn ask(client: &Client, pod: &str, port: u16, method: Method, path: &str) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
    let mut forward = pods.portforward(pod, &[port]).await?;
    let stream = forward.take_stream(port).context("no stream")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    driving.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    ensure!(status.is_success(), "{status}: {text}");
    Ok(text)
}
