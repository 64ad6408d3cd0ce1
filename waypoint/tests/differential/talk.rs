//! A client that writes what it is told, byte for byte, on a connection that it keeps.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use lab::Pod;

use super::asks::Ask;

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
    pod: &'a Pod,
    at: SocketAddr,
    open: Option<BufReader<TcpStream>>,
}

impl<'a> Talk<'a> {
    pub(super) fn new(pod: &'a Pod, at: SocketAddr) -> Self {
        Self {
            pod,
            at,
            open: None,
        }
    }

    /// Asks; on a new connection if the one that was kept has been closed meanwhile.
    pub(super) fn ask(&mut self, ask: &Ask, key: &str) -> Result<Heard> {
        let kept = self.open.is_some();
        match self.try_ask(ask, key) {
            Err(_) if kept => {
                self.open = None;
                self.try_ask(ask, key)
            }
            heard => heard,
        }
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
