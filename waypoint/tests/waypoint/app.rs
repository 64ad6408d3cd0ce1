//! An app in a pod, and clients: HTTP/1.1 and HTTP/2 as people write them, in this process.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use lab::Pod;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

type Body = BoxBody<Bytes, hyper::Error>;

/// A server in a pod that says what it was asked. Its path tells it what to do:
/// `/keep` keeps `x-key` and how long the body was, `/keep-version` how it was spoken to, and `/kept` lists it; `/echo` the body again, and trailers; `/status/NNN`; `/fail-first` 503 once a value of `x-key`; `/hang` no answer; `/slow` a late one; `/linger` none of the app that `x-slow` names, who keeps `left=` and `x-key` when nobody waits any more;
/// `/upgrade` bytes again; anything else what it saw.
pub(crate) struct App {
    failed: Arc<Mutex<Vec<String>>>,
}

impl App {
    /// Listens in `pod`; it answers for as long as `runtime` lives.
    pub(crate) fn start(runtime: &tokio::runtime::Runtime, pod: &Pod, port: u16) -> Result<Self> {
        let app = Self {
            failed: Arc::default(),
        };
        let listener: TcpListener = pod.listen(port)?;
        listener.set_nonblocking(true)?;
        let (name, failed) = (pod.name().to_owned(), app.failed.clone());
        let _in = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (name, failed) = (name.clone(), failed.clone());
                let service =
                    service_fn(move |request| answer(name.clone(), failed.clone(), request));
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let serving =
                        builder.serve_connection_with_upgrades(TokioIo::new(tcp), service);
                    let _ = serving.await;
                });
            }
        });
        Ok(app)
    }
}

async fn answer(
    name: String,
    failed: Arc<Mutex<Vec<String>>>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if request.method() == Method::HEAD {
        // An answer to HEAD has no body; over HTTP/2 hyper would send one.
        return Ok(whole(String::new()));
    }
    if let Some(status) = path.strip_prefix("/status/") {
        let mut answer = whole(format!("app={name}\n"));
        *answer.status_mut() = status.parse().unwrap();
        return Ok(answer);
    }
    Ok(match &*path {
        "/echo" => echoed(request.into_body()).await,
        "/keep" => {
            let key = text(request.headers(), "x-key");
            let (mut body, mut bytes) = (request.into_body(), 0);
            while let Some(frame) = body.frame().await {
                bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
            }
            failed.lock().unwrap().push(format!("{key}={bytes}"));
            whole(format!("app={name}\n"))
        }
        "/keep-version" => {
            let version = format!("{:?}", request.version());
            failed.lock().unwrap().push(version);
            whole(format!("app={name}\n"))
        }
        "/kept" => whole(failed.lock().unwrap().join("\n")),
        "/stream" => Response::new(request.into_body().boxed()),
        "/hang" => std::future::pending().await,
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            whole(seen(&name, &request))
        }
        "/linger" => {
            if text(request.headers(), "x-slow") == name {
                let key = text(request.headers(), "x-key");
                let _left = Left(failed, format!("left={key}"));
                std::future::pending::<()>().await;
            }
            whole(format!("app={name}\n"))
        }
        "/fail-first" => {
            let key = text(request.headers(), "x-key");
            let first = {
                let mut failed = failed.lock().unwrap();
                failed.push(key.clone());
                failed.iter().filter(|known| **known == key).count() == 1
            };
            let seen = request.into_body().collect().await.unwrap().to_bytes();
            let mut answer = whole(format!("app={name}\nbytes={}\n", seen.len()));
            if first {
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            answer
        }
        "/upgrade" => {
            let upgrading = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrading.await.unwrap());
                let mut bytes = [0; 1024];
                while let Ok(n @ 1..) = io.read(&mut bytes).await {
                    io.write_all(&bytes[..n]).await.unwrap();
                }
            });
            let mut answer = whole(String::new());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = answer.headers_mut();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            answer
        }
        _ => whole(seen(&name, &request)),
    })
}

/// Keeps a line when nobody waits for the answer any more.
struct Left(Arc<Mutex<Vec<String>>>, String);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(std::mem::take(&mut self.1));
    }
}

fn seen(name: &str, request: &Request<Incoming>) -> String {
    let mut text = format!(
        "app={name}\nmethod={}\nuri={}\nversion={:?}\n",
        request.method(),
        request.uri(),
        request.version()
    );
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}

fn whole(text: String) -> Response<Body> {
    Response::new(Full::from(text).map_err(|never| match never {}).boxed())
}

/// Everything again, and how much it was in the trailers.
async fn echoed(body: Incoming) -> Response<Body> {
    let all = body.collect().await.unwrap();
    let heard = all.trailers().map_or(0, HeaderMap::len);
    let bytes = all.to_bytes();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-bytes", HeaderValue::from(bytes.len()));
    trailers.insert("x-trailers", HeaderValue::from(heard));
    trailers.insert("grpc-status", HeaderValue::from(0));
    let frames = [Ok(Frame::data(bytes)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
    let mut answer = Response::new(body);
    let named = HeaderValue::from_static("x-bytes, x-trailers, grpc-status");
    answer.headers_mut().insert("trailer", named);
    answer
}

pub(crate) fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).map(HeaderValue::as_bytes);
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Heard {
    pub(crate) async fn of(answer: Response<Incoming>) -> Result<Self> {
        let (head, body) = answer.into_parts();
        let all = tokio::time::timeout(SOON, body.collect()).await??;
        let trailers = all.trailers().cloned().unwrap_or_default();
        Ok(Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: all.to_bytes(),
            trailers,
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a line `name=…` or `name: …` of what the app saw.
    pub(crate) fn saw(&self, name: &str) -> Option<String> {
        let text = self.text();
        let found = text.lines().find_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.strip_prefix('=').or(rest.strip_prefix(": "))
        });
        found.map(str::to_owned)
    }

    pub(crate) fn is(self, status: u16) -> Result<Self> {
        ensure!(
            self.status == status,
            "{} and not {status}: {self:?}",
            self.status
        );
        Ok(self)
    }
}

/// A connection of a pod's over HTTP/1.1.
pub(crate) struct One(http1::SendRequest<Full<Bytes>>);

/// A connection of a pod's over HTTP/2.
#[derive(Clone)]
pub(crate) struct Two(http2::SendRequest<Full<Bytes>>);

pub(crate) fn connect(pod: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let tcp = pod.connect(to)?;
    tcp.set_nonblocking(true)?;
    Ok(TcpStream::from_std(tcp)?)
}

impl One {
    pub(crate) async fn to(pod: &Pod, to: SocketAddr) -> Result<Self> {
        let tcp = TokioIo::new(connect(pod, to)?);
        let (sender, connection) = http1::handshake(tcp).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self(sender))
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>> {
        tokio::time::timeout(SOON, self.0.ready())
            .await
            .context("ready")??;
        let sending = self.0.send_request(request);
        Ok(tokio::time::timeout(SOON, sending)
            .await
            .context("an answer")??)
    }

    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Heard> {
        Heard::of(self.send(request).await?).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Heard> {
        self.ask(get(path)).await
    }
}

impl Two {
    pub(crate) async fn to(pod: &Pod, to: SocketAddr) -> Result<Self> {
        let tcp = TokioIo::new(connect(pod, to)?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), tcp).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>> {
        let sending = self.0.send_request(request);
        Ok(tokio::time::timeout(SOON, sending)
            .await
            .context("an answer")??)
    }

    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Heard> {
        Heard::of(self.send(request).await?).await
    }
}

/// A GET, in the form that HTTP/1.1 has it.
pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", "web.shop")
        .body(Full::default())
        .unwrap()
}

/// For what should take milliseconds, on a machine busy with debug builds.
pub(crate) const SOON: Duration = Duration::from_secs(20);
