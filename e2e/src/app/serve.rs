//! A server that says who answers and who asked.
//!
//! 1. one port for HTTP/1.1, HTTP/2 and gRPC's health check; a second for a TCP echo
//! 2. told to end, it asks kept connections to go elsewhere with their next answer, and goes on for `--linger` seconds: long
//!    enough for everyone to learn that it leaves, as a well-behaved server in Kubernetes does

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

#[derive(Args)]
pub(crate) struct Serve {
    /// HTTP/1.1, HTTP/2, gRPC health.
    #[arg(long, default_value_t = 8080)]
    http: u16,
    /// TCP echo.
    #[arg(long, default_value_t = 9000)]
    echo: u16,
    /// Seconds to go on after SIGTERM.
    #[arg(long, default_value_t = 3)]
    linger: u64,
}

impl Serve {
    pub(crate) async fn run(self) -> Result<()> {
        let name: Arc<str> = std::fs::read_to_string("/etc/hostname")?.trim().into();
        let leaving = Arc::new(AtomicBool::new(false));
        let http = TcpListener::bind(("::", self.http)).await?;
        let echo = TcpListener::bind(("::", self.echo)).await?;
        tokio::spawn(accept(http, {
            let leaving = leaving.clone();
            move |stream, from| serve_http(stream, from, name.clone(), leaving.clone())
        }));
        tokio::spawn(accept(echo, |stream, _| async move {
            let (mut read, mut write) = stream.into_split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }));
        signal(SignalKind::terminate())?.recv().await;
        leaving.store(true, Relaxed);
        tokio::time::sleep(Duration::from_secs(self.linger)).await;
        Ok(())
    }
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        if let Ok((stream, from)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream, from));
        }
    }
}

async fn serve_http(stream: TcpStream, from: SocketAddr, name: Arc<str>, leaving: Arc<AtomicBool>) {
    let service = service_fn(|request: Request<Incoming>| {
        let (name, leaving) = (name.clone(), leaving.load(Relaxed));
        async move {
            let mut response = answer(&name, from, &request);
            if leaving && request.version() == http::Version::HTTP_11 {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Body = BoxBody<Bytes, Infallible>;

fn answer(name: &str, from: SocketAddr, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() == "/grpc.health.v1.Health/Check" {
        return healthy();
    }
    let text = serde_json::json!({ "pod": name, "from": from.ip().to_canonical().to_string(), "path": request.uri().path() }).to_string();
    Response::new(Full::new(Bytes::from(text)).boxed())
}

/// gRPC's answer to a health check: one message that says SERVING, and the status behind it.
fn healthy() -> Response<Body> {
    const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data(Bytes::from_static(SERVING))),
        Ok(Frame::trailers(trailers)),
    ];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(
        frames,
    ))));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}
