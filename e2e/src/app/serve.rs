//! A server that says who answers, who asked, and what arrived.
//!
//! 1. one port for HTTP/1.1, HTTP/2 and gRPC's health check; one that is the same under TLS; a TCP echo; one that says its name
//!    before it echoes; one for datagrams
//! 2. the header `x-do` tells it to do otherwise                       ([`Deeds`])
//! 3. told to end, it asks kept connections to go elsewhere with their next answer, and goes on for `--linger` seconds: long
//!    enough for everyone to learn that it leaves, as a well-behaved server in Kubernetes does

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

use crate::provider;

#[derive(Args)]
pub(crate) struct Serve {
    /// Its own; else its host's.
    #[arg(long)]
    name: Option<String>,
    /// HTTP/1.1, HTTP/2, gRPC health.
    #[arg(long, default_value_t = 8080)]
    http: u16,
    /// The same under TLS.
    #[arg(long, default_value_t = 8443)]
    https: u16,
    /// TCP echo.
    #[arg(long, default_value_t = 9000)]
    echo: u16,
    /// The same, behind a line with the name.
    #[arg(long, default_value_t = 9001)]
    greet: u16,
    /// Datagrams.
    #[arg(long, default_value_t = 9000)]
    datagrams: u16,
    /// Seconds to go on after SIGTERM.
    #[arg(long, default_value_t = 3)]
    linger: u64,
}

/// What all its connections share.
struct Server {
    name: Arc<str>,
    leaving: AtomicBool,
    seen: Seen,
}

/// How often a key was kept, a request came, or something was told.
#[derive(Default)]
pub(crate) struct Seen(Mutex<HashMap<String, u64>>);

impl Seen {
    /// Adds to a key's count, which is returned.
    pub(crate) fn add(&self, key: &str, more: u64) -> u64 {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.entry(key.to_owned()).or_default();
        *count += more;
        *count
    }
}

impl Serve {
    pub(crate) async fn run(self) -> Result<()> {
        let name = match self.name {
            Some(name) => name,
            None => std::fs::read_to_string("/etc/hostname")?.trim().to_owned(),
        };
        let name: Arc<str> = name.into();
        let server = Arc::new(Server {
            name: name.clone(),
            leaving: AtomicBool::new(false),
            seen: Seen::default(),
        });
        let tls = TlsAcceptor::from(Arc::new(crate::tls::server()?));
        let https = server.clone();
        let plain = server.clone();
        tokio::spawn(accept(listen(self.http).await?, move |mut stream, from| {
            let server = plain.clone();
            async move {
                let from = Caller {
                    address: from,
                    at: stream.local_addr().ok(),
                    certified: false,
                    preamble: preamble(&mut stream).await,
                };
                serve_http(stream, from, server).await;
            }
        }));
        tokio::spawn(accept(listen(self.https).await?, move |stream, from| {
            let (tls, server) = (tls.clone(), https.clone());
            async move {
                if let Ok(stream) = tls.accept(stream).await {
                    let from = Caller {
                        address: from,
                        at: stream.get_ref().0.local_addr().ok(),
                        certified: stream.get_ref().1.peer_certificates().is_some(),
                        preamble: None,
                    };
                    serve_http(stream, from, server).await;
                }
            }
        }));
        tokio::spawn(accept(listen(self.echo).await?, |stream, _| echo(stream)));
        let socket = UdpSocket::bind(("::", self.datagrams)).await?;
        tokio::spawn(datagrams(socket, name.clone()));
        tokio::spawn(accept(listen(self.greet).await?, move |mut stream, _| {
            let line = format!("{name}\n");
            async move {
                if stream.write_all(line.as_bytes()).await.is_ok() {
                    echo(stream).await;
                }
            }
        }));
        signal(SignalKind::terminate())?.recv().await;
        server.leaving.store(true, Relaxed);
        tokio::time::sleep(Duration::from_secs(self.linger)).await;
        Ok(())
    }
}

async fn listen(port: u16) -> Result<TcpListener> {
    Ok(TcpListener::bind(("::", port)).await?)
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

async fn echo(stream: TcpStream) {
    let (mut read, mut write) = stream.into_split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// Says to each who answers it, and whom.
async fn datagrams(socket: UdpSocket, name: Arc<str>) {
    let mut heard = vec![0; 65_536];
    loop {
        if let Ok((bytes, from)) = socket.recv_from(&mut heard).await {
            let address = from.ip().to_canonical().to_string();
            let said = json!({ "pod": &*name, "from": address, "bytes": bytes });
            let _ = socket.send_to(said.to_string().as_bytes(), from).await;
        }
    }
}

/// Who asks.
#[derive(Clone)]
struct Caller {
    address: SocketAddr,
    /// Where the server was asked.
    at: Option<SocketAddr>,
    /// With a certificate of the authority that we know.
    certified: bool,
    /// What a proxy has said of him.
    preamble: Option<Arc<str>>,
}

/// The line of the PROXY protocol, where a connection begins with one.
async fn preamble(stream: &mut TcpStream) -> Option<Arc<str>> {
    let mut first = [0; 6];
    let seen = stream.peek(&mut first).await.ok()?;
    if first[..seen] != *b"PROXY " {
        return None;
    }
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    Some(str::from_utf8(&line).ok()?.trim().into())
}

async fn serve_http<S>(stream: S, from: Caller, server: Arc<Server>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (server, from) = (server.clone(), from.clone());
        async move {
            let first = request.version() == http::Version::HTTP_11;
            let mut response = server.answer(from, request).await;
            if first && server.leaving.load(Relaxed) {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What `x-do` says, words with values.
///
/// `status=503` answers so; `first=503` only the first request of an id; `wait=500` milliseconds before the answer; `keep=KEY` counts the
/// bytes of a body under a key, and `kept=KEY` says how many there were; `only=NAME`: all of it is for the server of that name.
#[derive(Default)]
struct Deeds(HashMap<String, String>);

impl Deeds {
    fn of(headers: &HeaderMap, name: &str) -> Self {
        let text = headers.get("x-do").and_then(|it| it.to_str().ok());
        let words = text.unwrap_or_default().split_whitespace();
        let pairs = words.filter_map(|word| word.split_once('='));
        let deeds = Self(pairs.map(|(a, b)| (a.into(), b.into())).collect());
        let others = deeds.0.get("only").is_some_and(|it| it != name);
        if others { Self::default() } else { deeds }
    }

    fn number(&self, word: &str) -> Option<u64> {
        self.0.get(word)?.parse().ok()
    }

    fn status(&self, word: &str) -> Option<StatusCode> {
        StatusCode::from_u16(self.number(word)?.try_into().ok()?).ok()
    }
}

impl Server {
    async fn answer(&self, from: Caller, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == "/grpc.health.v1.Health/Check" {
            return grpc(&[0x08, 0x01]); // SERVING
        }
        let path = request.uri().path().to_owned();
        if provider::is_asked(&path) {
            return provider::answer(&self.name, &self.seen, &path, request.into_body()).await;
        }
        if request.headers().contains_key(header::UPGRADE) {
            return upgraded(request);
        }
        let deeds = Deeds::of(request.headers(), &self.name);
        let (head, body) = request.into_parts();
        let is_grpc = head.headers.get(header::CONTENT_TYPE);
        let is_grpc = is_grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let bytes = length(body).await;
        if let Some(millis) = deeds.number("wait") {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        let mut headers = Map::new();
        for name in head.headers.keys() {
            let all = head.headers.get_all(name).iter();
            let all: Vec<_> = all
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            headers.insert(name.to_string(), Value::from(all.join(", ")));
        }
        let at = from
            .at
            .map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()));
        let mut said = json!({
            "at": at.map(|at| at.to_string()),
            "pod": &*self.name, "from": from.address.ip().to_canonical().to_string(), "certified": from.certified,
            "method": head.method.as_str(),
            "path": head.uri.path_and_query().map(|path| path.as_str()), "version": format!("{:?}", head.version),
            "headers": headers, "bytes": bytes,
        });
        if let Some(preamble) = &from.preamble {
            said["preamble"] = (**preamble).into();
        }
        if let Some(key) = deeds.0.get("keep") {
            self.seen.add(key, bytes);
        }
        if let Some(key) = deeds.0.get("kept") {
            said["kept"] = self.seen.add(key, 0).into();
        }
        if is_grpc {
            return grpc(said.to_string().as_bytes());
        }
        let body = Full::new(Bytes::from(said.to_string()));
        let mut response = Response::new(body.boxed_unsync());
        let id = head.headers.get("x-request-id");
        let id = id
            .and_then(|id| id.to_str().ok())
            .map(|id| format!("id {id}"));
        let first = deeds.status("first");
        let first = first.filter(|_| id.is_some_and(|id| self.seen.add(&id, 1) == 1));
        if let Some(status) = deeds.status("status").or(first) {
            *response.status_mut() = status;
        }
        response
    }
}

async fn length(mut body: Incoming) -> u64 {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    bytes
}

/// Bytes again.
fn upgraded(mut request: Request<Incoming>) -> Response<Body> {
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrading.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    });
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}

/// gRPC's answer: one message, and the status behind it.
pub(crate) fn grpc(message: &[u8]) -> Response<Body> {
    let frames = [Ok(Frame::data(framed(message))), Ok(finished())];
    rpc(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
}

/// gRPC's answer, of these frames.
pub(crate) fn rpc(frames: Body) -> Response<Body> {
    let mut response = Response::new(frames);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// A message behind its length.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    bytes.into()
}

/// That all went well.
pub(crate) fn finished() -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Frame::trailers(trailers)
}
