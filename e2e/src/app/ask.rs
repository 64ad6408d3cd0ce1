//! Asks what it is told on the command line, one JSON array of [`Ask`]s, and prints what it heard: an array for each.
//!
//! `ROUND` in them is another word each time. Host names are completed with `--namespace`, so that they mean the same wherever names have no search list.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use e2e::feature::{Ask as Question, Heard};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::tls;

/// What a question may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// How much of a body is told.
const MOST: usize = 400;

#[derive(Args)]
pub(crate) struct Ask {
    /// Of the names that are asked for.
    #[arg(long)]
    namespace: String,
    questions: String,
}

impl Ask {
    #[allow(clippy::print_stdout)] // that is what it is for
    pub(crate) async fn run(self) -> Result<()> {
        let questions = self.questions.replace("ROUND", &id());
        let questions: Vec<Question> = serde_json::from_str(&questions)?;
        let mut all = Vec::new();
        for question in &questions {
            all.push(self.each(question).await);
        }
        println!("{}", serde_json::to_string(&all)?);
        Ok(())
    }

    async fn each(&self, question: &Question) -> Vec<Heard> {
        if question.together {
            let asking = (0..question.times).map(|_| self.one(question, None));
            return join_all(asking).await;
        }
        let mut heard: Vec<Heard> = Vec::new();
        let mut kept: Option<(HeaderName, HeaderValue)> = None;
        for _ in 0..question.times {
            let one = self.one(question, kept.as_ref()).await;
            let name = question.keep.as_deref().unwrap_or_default();
            if let Some(value) = one.heads.get(name) {
                kept = back(name, value).or(kept);
            }
            heard.push(one);
        }
        heard
    }

    async fn one(&self, question: &Question, kept: Option<&(HeaderName, HeaderValue)>) -> Heard {
        let at = match question.around {
            true => self.place(question).await,
            false => None,
        };
        if question.around && at.is_none() {
            return failed("no server said where it is".into());
        }
        let began = Instant::now();
        let id = id();
        let asked = timeout(PATIENCE, self.ask(question, at, &id, kept)).await;
        let mut heard = match asked {
            Ok(Ok(heard)) => heard,
            Ok(Err(error)) => failed(format!("{error:#}")),
            Err(_) => failed("no end".into()),
        };
        heard.took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        heard.id = id;
        heard.at = at.map(|at| at.to_string());
        heard
    }

    /// Where the pod is that answers, by its own words.
    async fn place(&self, question: &Question) -> Option<SocketAddr> {
        let asked = timeout(PATIENCE, self.ask(question, None, &id(), None)).await;
        asked.ok()?.ok()?.said["at"].as_str()?.parse().ok()
    }

    async fn ask(
        &self,
        question: &Question,
        at: Option<SocketAddr>,
        id: &str,
        kept: Option<&(HeaderName, HeaderValue)>,
    ) -> Result<Heard> {
        let url: Uri = question.url.parse()?;
        let scheme = url.scheme_str().context("no scheme")?;
        let host = url.host().context("no host")?;
        let usual = if scheme == "https" { 443 } else { 80 };
        let name = match host.contains('.') {
            true => host.to_owned(),
            false => format!("{host}.{}", self.namespace),
        };
        let tcp = match at {
            Some(at) => TcpStream::connect(at).await?,
            None => TcpStream::connect((name, url.port_u16().unwrap_or(usual))).await?,
        };
        tcp.set_nodelay(true)?;
        let request = || request(question, &url, id, kept);
        match scheme {
            "http" => heard(over_http1(tcp, request()?).await?).await,
            "h2" | "grpc" => heard(over_http2(tcp, request()?).await?).await,
            "https" => {
                let name = question.sni.clone().unwrap_or_else(|| host.to_owned());
                let tls = TlsConnector::from(Arc::new(tls::anybody()?));
                let tls = tls.connect(name.try_into()?, tcp).await?;
                heard(over_http1(tls, request()?).await?).await
            }
            "ws" => upgraded(tcp, request()?, question.bytes).await,
            "tcp" => bytes(tcp, question.bytes).await,
            other => bail!("nobody here speaks {other}"),
        }
    }
}

fn failed(error: String) -> Heard {
    Heard {
        error: Some(error),
        ..Heard::default()
    }
}

/// Never the same twice, on any machine.
fn id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!(
        "{}-{}",
        now.unwrap_or_default().as_nanos(),
        std::process::id()
    )
}

/// What is sent back of an answer's header.
fn back(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = match name {
        "set-cookie" => ("cookie", value.split(';').next()?),
        name => (name, value),
    };
    Some((name.parse().ok()?, value.parse().ok()?))
}

fn request(
    question: &Question,
    url: &Uri,
    id: &str,
    kept: Option<&(HeaderName, HeaderValue)>,
) -> Result<Request<Full<Bytes>>> {
    let scheme = url.scheme_str().unwrap_or_default();
    let authority = url.authority().context("no host")?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let second = matches!(scheme, "h2" | "grpc");
    let mut request = Request::builder().method(question.method.as_str());
    request = if second {
        request
            .uri(format!("http://{authority}{path}"))
            .version(Version::HTTP_2)
    } else {
        request.uri(path).header("host", authority.as_str())
    };
    for (name, value) in &question.headers {
        request = request.header(name, value);
    }
    if let Some((name, value)) = kept {
        request = request.header(name, value);
    }
    if scheme == "ws" {
        request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    }
    let mut body = vec![b'x'; question.bytes];
    if scheme == "grpc" {
        request = request
            .method("POST")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        body = vec![0; 5]; // an empty message
    }
    let body = if scheme == "ws" { Vec::new() } else { body };
    Ok(request.header("x-request-id", id).body(Full::from(body))?)
}

async fn over_http1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>> {
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(send.send_request(request).await?)
}

async fn over_http2(tcp: TcpStream, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
    tokio::spawn(connection);
    Ok(send.send_request(request).await?)
}

async fn heard(response: Response<Incoming>) -> Result<Heard> {
    let (head, body) = response.into_parts();
    let mut heads = BTreeMap::new();
    enter(&mut heads, &head.headers);
    let body = body.collect().await?;
    if let Some(trailers) = body.trailers() {
        enter(&mut heads, trailers);
    }
    let bytes = body.to_bytes();
    // Of gRPC: behind the message's length.
    let said = serde_json::from_slice(&bytes);
    let said = said.or_else(|_| serde_json::from_slice(bytes.get(5..).unwrap_or_default()));
    Ok(Heard {
        status: head.status.as_u16(),
        heads,
        said: said.unwrap_or_default(),
        text: told(&bytes),
        ..Heard::default()
    })
}

fn told(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]).into_owned()
}

fn enter(heads: &mut BTreeMap<String, String>, headers: &HeaderMap) {
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        heads
            .entry(name.to_string())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
}

/// What is sent after the upgrade must come back.
async fn upgraded(tcp: TcpStream, request: Request<Full<Bytes>>, count: usize) -> Result<Heard> {
    let mut response = over_http1(tcp, request).await?;
    if response.status() != 101 {
        return heard(response).await;
    }
    let stream = hyper::upgrade::on(&mut response).await?;
    let text = exchange(TokioIo::new(stream), count).await?;
    Ok(Heard {
        status: 101,
        text,
        ..Heard::default()
    })
}

/// A line that the server may say first, then what was sent.
async fn bytes(tcp: TcpStream, count: usize) -> Result<Heard> {
    let text = exchange(tcp, count).await?;
    Ok(Heard {
        status: 200,
        text,
        ..Heard::default()
    })
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, count: usize) -> Result<String> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut all = Vec::new();
    if count == 0 {
        // Who has nothing to say lets the other begin.
        let mut first = [0; MOST];
        let read = read.read(&mut first).await?;
        all.extend(&first[..read]);
    }
    let saying = async {
        write.write_all(&vec![b'x'; count]).await?;
        write.shutdown().await
    };
    // Both at a time: what comes back may be more than all between has room for.
    tokio::try_join!(saying, read.read_to_end(&mut all))?;
    if count > 0 && !all.ends_with(&vec![b'x'; count]) {
        bail!("not all came back: {}", all.len());
    }
    Ok(told(&all))
}
