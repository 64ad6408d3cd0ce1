//! A client that writes what it is told, on a connection that it keeps: byte for byte over HTTP/1.1, and over HTTP/2 in the
//! words of that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use lab::Pod;
use tokio::runtime::Runtime;

use super::asks::Ask;
use crate::app::{self, Two};

/// What came back.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    pub(super) status: u16,
    /// In lower case, as they came.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Heard {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(one, _)| one == name);
        found.next().map(|(_, value)| &**value)
    }
}

/// A client and whom it talks to.
pub(super) struct Talk<'a> {
    runtime: &'a Runtime,
    pod: &'a Pod,
    at: SocketAddr,
    open: Option<BufReader<TcpStream>>,
    two: Option<Two>,
}

impl<'a> Talk<'a> {
    pub(super) fn new(runtime: &'a Runtime, pod: &'a Pod, at: SocketAddr) -> Self {
        Self {
            runtime,
            pod,
            at,
            open: None,
            two: None,
        }
    }

    /// Asks; on a new connection if the one that was kept has been closed meanwhile.
    pub(super) fn ask(&mut self, ask: &Ask, key: &str) -> Result<Heard> {
        if ask.http2 {
            return self.ask_over_two(ask, key);
        }
        let kept = self.open.is_some();
        match self.try_ask(ask, key) {
            Err(_) if kept => {
                self.open = None;
                self.try_ask(ask, key)
            }
            heard => heard,
        }
    }

    fn ask_over_two(&mut self, ask: &Ask, key: &str) -> Result<Heard> {
        let (runtime, pod, at) = (self.runtime, self.pod, self.at);
        runtime.block_on(async {
            if let Some(two) = &mut self.two
                && let Ok(heard) = two.ask(framed(ask, key)?).await
            {
                return Ok(heard.into());
            }
            let mut two = Two::to(pod, at).await?;
            let heard = two.ask(framed(ask, key)?).await?;
            self.two = Some(two);
            Ok(heard.into())
        })
    }

    fn try_ask(&mut self, ask: &Ask, key: &str) -> Result<Heard> {
        let mut stream = match self.open.take() {
            Some(open) => open,
            None => BufReader::new(self.pod.connect(self.at)?),
        };
        stream.get_mut().write_all(written(ask, key).as_bytes())?;
        let (heard, keeps) = read(&mut stream, ask.method == "HEAD")?;
        if keeps {
            self.open = Some(stream);
        }
        Ok(heard)
    }
}

impl From<app::Heard> for Heard {
    fn from(heard: app::Heard) -> Self {
        let headers = heard.headers.iter().map(|(name, value)| {
            let value = value.as_bytes().iter().copied().map(char::from);
            (name.as_str().to_owned(), value.collect())
        });
        Self {
            status: heard.status,
            headers: headers.collect(),
            body: heard.body.into(),
        }
    }
}

/// Whether it can be said over HTTP/2 by a client that knows what a URI is.
pub(super) fn can_be_framed(ask: &Ask) -> bool {
    framed(ask, "").is_ok()
}

fn framed(ask: &Ask, key: &str) -> Result<Request<Full<Bytes>>> {
    let uri: Uri = format!("http://{}{}", ask.host, ask.target).parse()?;
    let mut request = Request::builder()
        .method(&*ask.method)
        .uri(uri)
        .header("x-key", key);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    Ok(request.body(Full::from(ask.body.clone()))?)
}

fn written(ask: &Ask, key: &str) -> String {
    let mut text = format!(
        "{} {} HTTP/1.1\r\nhost: {}\r\nx-key: {key}\r\n",
        ask.method, ask.target, ask.host
    );
    for (name, value) in &ask.headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !ask.body.is_empty() {
        text += &format!("content-length: {}\r\n", ask.body.len());
    }
    text + "\r\n" + &ask.body
}

/// One answer, and whether another may follow.
fn read(stream: &mut BufReader<TcpStream>, bare: bool) -> Result<(Heard, bool)> {
    let mut heard = Heard::default();
    let first = line(stream)?;
    let status = first.split(' ').nth(1).context("a status")?;
    heard.status = status.parse().context("a status")?;
    loop {
        let line = line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').context("a header")?;
        heard
            .headers
            .push((name.to_lowercase(), value.trim().to_owned()));
    }
    let keeps = heard.header("connection") != Some("close");
    if bare || matches!(heard.status, 204 | 304) {
        return Ok((heard, keeps));
    }
    if heard.header("transfer-encoding").is_some() {
        loop {
            let size = usize::from_str_radix(line(stream)?.trim(), 16)?;
            let mut part = vec![0; size + 2];
            stream.read_exact(&mut part)?;
            heard.body.extend_from_slice(&part[..size]);
            if size == 0 {
                return Ok((heard, keeps));
            }
        }
    }
    match heard.header("content-length").map(str::parse) {
        Some(length) => {
            heard.body = vec![0; length?];
            stream.read_exact(&mut heard.body)?;
            Ok((heard, keeps))
        }
        None => {
            stream.read_to_end(&mut heard.body)?;
            Ok((heard, false))
        }
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    ensure!(line.ends_with(b"\r\n"), "the end, or half a line: {line:?}");
    line.truncate(line.len() - 2);
    Ok(line.into_iter().map(char::from).collect())
}
