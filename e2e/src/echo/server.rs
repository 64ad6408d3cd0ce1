//! The server.

use std::{convert::Infallible, fmt::Write as _, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header};
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
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls};

use crate::{framed, unframed};

#[derive(Parser)]
pub(crate) struct Server {
    /// HTTP.
    #[arg(long)]
    port: Vec<u16>,
    /// Which of them are under TLS.
    #[arg(long)]
    tls: Vec<u16>,
    /// gRPC.
    #[arg(long)]
    grpc: Vec<u16>,
    /// Bytes that are given back, behind a line that says who does it.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Of TLS; where there is no such file a certificate is made.
    #[arg(long, default_value = "")]
    crt: String,
    /// Of TLS.
    #[arg(long, default_value = "")]
    key: String,
}

impl Server {
    pub(crate) async fn run(self) -> Result<()> {
        let name = std::fs::read_to_string("/etc/hostname").context("/etc/hostname")?;
        let name: Arc<str> = name.trim().into();
        let tls = if self.tls.is_empty() {
            None
        } else {
            Some(acceptor()?)
        };
        let mut doors = JoinSet::new();
        for port in self.port.iter().chain(&self.grpc).copied() {
            let tls = tls.clone().filter(|_| self.tls.contains(&port));
            doors.spawn(listen(port, name.clone(), move |stream, from, name| {
                let tls = tls.clone();
                async move {
                    match tls {
                        None => serve(stream, (from, port), name).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, (from, port), name).await;
                            }
                        }
                    }
                }
            }));
        }
        for port in self.tcp {
            doors.spawn(listen(port, name.clone(), echo));
        }
        let mut told = signal(SignalKind::terminate())?;
        tokio::select! {
            Some(ended) = doors.join_next() => ended?,
            _ = told.recv() => Ok(()),
        }
    }
}

async fn listen<F>(
    port: u16,
    name: Arc<str>,
    serve: impl Fn(TcpStream, SocketAddr, Arc<str>) -> F,
) -> Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("::", port)).await?;
    loop {
        if let Ok((stream, from)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream, from, name.clone()));
        }
    }
}

async fn echo(mut stream: TcpStream, _: SocketAddr, name: Arc<str>) {
    let _ = stream
        .write_all(format!("Hostname={name}\n").as_bytes())
        .await;
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn serve<S>(stream: S, (from, port): (SocketAddr, u16), name: Arc<str>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let name = name.clone();
        async move { Ok::<_, Infallible>(answer(request, &name, from, port).await) }
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    name: &str,
    from: SocketAddr,
    port: u16,
) -> Response<Body> {
    let lines = told(&request, name, from, port);
    let grpc = request.headers().get(header::CONTENT_TYPE);
    if !grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Response::new(Full::new(Bytes::from(lines)).boxed());
    }
    let asked = match request.into_body().collect().await {
        Ok(body) => unframed(&body.to_bytes()).unwrap_or_default(),
        Err(_) => String::new(),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data(framed(format!("{lines}Echo={asked}\n")).into())),
        Ok(Frame::trailers(trailers)),
    ];
    let frames = StreamBody::new(futures_util::stream::iter(frames));
    let mut response = Response::new(BodyExt::boxed(frames));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A line a fact.
fn told(request: &Request<Incoming>, name: &str, from: SocketAddr, port: u16) -> String {
    let (uri, headers) = (request.uri(), request.headers());
    let host = uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| headers.get(header::HOST)?.to_str().ok());
    let protocol = match request.version() {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut lines = format!(
        "ServicePort={port}\nHost={}\nURL={path}\nMethod={}\nProto={protocol}\nIP={}\n",
        host.unwrap_or_default(),
        request.method(),
        from.ip().to_canonical(),
    );
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        // Writing into a String cannot fail.
        let _ = writeln!(lines, "RequestHeader={name}:{value}");
    }
    let _ = writeln!(lines, "Hostname={name}");
    lines
}

/// TLS with a certificate of its own making: nobody verifies it.
fn acceptor() -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["echo".to_owned()])?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
