//! An app that reads HTTP/1.1 byte by byte and takes nothing that could be read in two ways: what reaches it reads alike
//! for every app.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use lab::Pod;

/// What has arrived.
#[derive(Clone, Default)]
pub(crate) struct Strict(Arc<Mutex<Arrived>>);

#[derive(Default)]
struct Arrived {
    /// Whole requests: first line, head, body.
    requests: Vec<(String, String, Vec<u8>)>,
    /// What could not be read.
    broken: Vec<String>,
}

impl Strict {
    /// Listens in `pod`. Whatever arrives is answered 200.
    pub(crate) fn listen(&self, pod: &Pod, port: u16) -> Result<()> {
        let listener = pod.listen(port)?;
        let strict = self.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let strict = strict.clone();
                std::thread::spawn(move || strict.serve(stream));
            }
        });
        Ok(())
    }

    /// How often a whole request for that path has arrived.
    pub(crate) fn times(&self, path: &str) -> usize {
        let all = self.0.lock().unwrap();
        let is = |line: &&(String, String, Vec<u8>)| line.0.split(' ').nth(1) == Some(path);
        all.requests.iter().filter(is).count()
    }

    /// The head of the first request for that path.
    pub(crate) fn head(&self, path: &str) -> Option<String> {
        let all = self.0.lock().unwrap();
        let mut found = all.requests.iter();
        let found = found.find(|(line, ..)| line.split(' ').nth(1) == Some(path));
        found.map(|(_, head, _)| head.clone())
    }

    /// What could not be read, so far.
    pub(crate) fn broken(&self) -> Vec<String> {
        self.0.lock().unwrap().broken.clone()
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = Reader {
            stream,
            bytes: Vec::new(),
        };
        loop {
            match reader.request() {
                Ok(Some(request)) => {
                    let head_only = request.0.starts_with("HEAD ");
                    self.0.lock().unwrap().requests.push(request);
                    let body = if head_only { "" } else { "ok" };
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}");
                    if reader.stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
                // An end within a request is an end: nobody takes half of one.
                Ok(None) => return,
                Err(why) => {
                    let seen = String::from_utf8_lossy(&reader.bytes).into_owned();
                    let why = format!("{why:#}: {seen:?}");
                    return self.0.lock().unwrap().broken.push(why);
                }
            }
        }
    }
}

struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Reader {
    /// The next request; none where the connection ends before it does.
    fn request(&mut self) -> Result<Option<(String, String, Vec<u8>)>> {
        let Some(head) = self.until(b"\r\n\r\n")? else {
            return Ok(None);
        };
        let head = String::from_utf8(head).context("a head that is no text")?;
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let words: Vec<_> = first.split(' ').collect();
        let target = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(
            words.len() == 3 && words[2] == "HTTP/1.1" && target(words[1]),
            "{first:?}"
        );
        let (mut length, mut chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(':').context("a line without colon")?;
            let token =
                |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            ensure!(!name.is_empty() && name.bytes().all(token), "{line:?}");
            let plain = |byte: u8| byte == b'\t' || byte >= b' ' && byte != 127;
            ensure!(value.bytes().all(plain), "{line:?}");
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let said = value.trim();
                    ensure!(
                        length.is_none() && said.bytes().all(|b| b.is_ascii_digit()),
                        "{line:?}"
                    );
                    length = Some(said.parse::<usize>()?);
                }
                "transfer-encoding" => {
                    ensure!(!chunked && value.trim() == "chunked", "{line:?}");
                    chunked = true;
                }
                _ => {}
            }
        }
        ensure!(length.is_none() || !chunked, "a length and chunks");
        let body = match chunked {
            true => self.chunks()?,
            false => self.exactly(length.unwrap_or(0))?,
        };
        Ok(body.map(|body| (first, head, body)))
    }

    fn chunks(&mut self) -> Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.until(b"\r\n")? else {
                return Ok(None);
            };
            let digits = std::str::from_utf8(&line[..line.len() - 2])?;
            ensure!(
                digits.bytes().all(|b| b.is_ascii_hexdigit()),
                "size {digits:?}"
            );
            let size = usize::from_str_radix(digits, 16)?;
            if size == 0 {
                break;
            }
            let Some(data) = self.exactly(size + 2)? else {
                return Ok(None);
            };
            ensure!(data.ends_with(b"\r\n"), "a chunk that does not end");
            body.extend_from_slice(&data[..size]);
        }
        // Trailers.
        loop {
            match self.until(b"\r\n")? {
                Some(line) if line == b"\r\n" => return Ok(Some(body)),
                Some(line) if line.contains(&b':') => {
                    let line = String::from_utf8(line)?.to_ascii_lowercase();
                    for name in [
                        "content-length",
                        "transfer-encoding",
                        "host",
                        "authorization",
                    ] {
                        ensure!(!line.starts_with(name), "a trailer {line:?}");
                    }
                }
                Some(line) => bail!("a trailer {line:?}"),
                None => return Ok(None),
            }
        }
    }

    fn until(&mut self, end: &[u8]) -> Result<Option<Vec<u8>>> {
        loop {
            let found = self.bytes.windows(end.len()).position(|part| part == end);
            if let Some(at) = found {
                let rest = self.bytes.split_off(at + end.len());
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
            ensure!(self.bytes.len() < 1 << 20, "no end");
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Result<Option<Vec<u8>>> {
        while self.bytes.len() < length {
            if !self.more()? {
                return Ok(None);
            }
        }
        let rest = self.bytes.split_off(length);
        Ok(Some(std::mem::replace(&mut self.bytes, rest)))
    }

    fn more(&mut self) -> Result<bool> {
        let mut part = [0; 4096];
        let read = self.stream.read(&mut part).unwrap_or(0);
        self.bytes.extend_from_slice(&part[..read]);
        Ok(read > 0)
    }
}
