//! The client.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::{CALL, framed, unframed};

/// Nobody waits longer for an answer: the suite asks again.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Parser)]
pub(crate) struct Client {
    /// Where to: http://host/path or grpc://host:port.
    url: Uri,
    /// Of HTTP.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// name:value; Host is the one that is sent in the place of the URL's.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// How many requests, each on a connection of its own.
    #[arg(long, default_value_t = 1)]
    count: usize,
}

impl Client {
    #[allow(clippy::print_stdout)] // that is what it is for
    pub(crate) async fn run(self) -> Result<()> {
        for n in 0..self.count {
            let lines = tokio::time::timeout(PATIENCE, self.ask(n)).await;
            println!("{}", lines.context("no answer")??);
        }
        Ok(())
    }

    async fn ask(&self, n: usize) -> Result<String> {
        let host = self.url.host().context("the URL has no host")?;
        let grpc = match self.url.scheme_str() {
            Some("http") => false,
            Some("grpc") => true,
            other => bail!("http or grpc, not {other:?}"),
        };
        let port = self.url.port_u16().unwrap_or(80);
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        let stream = TokioIo::new(stream);
        let response = if grpc {
            let (mut send, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            send.send_request(self.call()?).await?
        } else {
            let (mut send, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            send.send_request(self.request()?).await?
        };
        self.shown(n, response, grpc).await
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(path)
            .body(Full::default())?;
        let host = self.url.authority().context("the URL has no host")?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_str(host.as_str())?);
        for (name, value) in self.named()? {
            if name == header::HOST {
                headers.insert(name, value);
            } else {
                headers.append(name, value);
            }
        }
        Ok(request)
    }

    fn call(&self) -> Result<Request<Full<Bytes>>> {
        let host = self.url.authority().context("the URL has no host")?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{host}{CALL}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(framed("hello".into()).into()))?;
        for (name, value) in self.named()? {
            request.headers_mut().append(name, value);
        }
        Ok(request)
    }

    fn named(&self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        self.headers
            .iter()
            .map(|given| {
                let (name, value) = given.split_once(':').context("a header is name:value")?;
                Ok((name.trim().parse()?, value.trim().parse()?))
            })
            .collect()
    }

    /// What came, a line a fact. A call that failed is shown by its code, for there is no HTTP status that tells.
    async fn shown(&self, n: usize, response: Response<Incoming>, grpc: bool) -> Result<String> {
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let code = body.trailers().and_then(|all| all.get("grpc-status"));
        let code = code.or_else(|| head.headers.get("grpc-status")).cloned();
        let bytes = body.to_bytes();
        let text = if grpc {
            ensure!(code.is_some(), "the call has no status: {}", head.status);
            let failed = code.is_some_and(|code| code != "0");
            ensure!(!failed, "the call failed: {:?}", head.headers);
            unframed(&bytes)?
        } else {
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut lines = format!("[{n}] Url={}\n", self.url);
        // Writing into a String cannot fail.
        let _ = writeln!(lines, "[{n}] StatusCode={}", head.status.as_u16());
        for (name, value) in &head.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            let _ = writeln!(lines, "[{n}] ResponseHeader={name}:{value}");
        }
        for line in text.lines().filter(|line| !line.is_empty()) {
            let _ = writeln!(lines, "[{n} body] {line}");
        }
        Ok(lines)
    }
}
