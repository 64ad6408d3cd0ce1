//! The app behind both: raw, so that nothing of a request is lost or made better. It says in `x-seen` what it was sent, byte for
//! byte, and fails as often as `x-fail` asks, told apart by `x-key`. `x-delay` says how long an answer takes, in milliseconds:
//! of one that fails, only while it fails. What says `x-keep` is kept, for the test to see what became of its copies.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};

type Tries = Arc<Mutex<HashMap<String, u32>>>;

/// What one app was sent, by `x-key`, as it writes it in `x-seen`.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<HashMap<String, Vec<String>>>>);

impl Kept {
    pub(super) fn of(&self, key: &str) -> Vec<String> {
        let kept = self.0.lock().expect("no thread panics with it");
        kept.get(key).cloned().unwrap_or_default()
    }

    fn keep(&self, key: &str, seen: &str) {
        let mut kept = self.0.lock().expect("no thread panics with it");
        kept.entry(key.to_owned())
            .or_default()
            .push(seen.to_owned());
    }
}

/// Serves for as long as this program lives.
pub(super) fn serve(name: &str, listener: TcpListener) -> Kept {
    let (name, tries, kept) = (name.to_owned(), Tries::default(), Kept::default());
    let keeps = kept.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (name, tries, kept) = (name.clone(), tries.clone(), kept.clone());
            // Whatever breaks off is the client's matter.
            std::thread::spawn(move || drop(converse(&name, &tries, &kept, stream)));
        }
    });
    keeps
}

fn converse(name: &str, tries: &Tries, kept: &Kept, stream: TcpStream) -> Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let head = head(&mut reader)?;
        let said = |name: &str| {
            let lines = head.lines().skip(1);
            let mut found = lines.filter_map(|line| line.split_once(": "));
            found
                .find(|(one, _)| *one == name)
                .map(|(_, value)| value.to_owned())
        };
        let length = said("content-length").map_or(Ok(0), |length| length.parse())?;
        let body = body(&mut reader, length, said("transfer-encoding").is_some())?;
        let mut seen = head.clone().into_bytes();
        seen.extend(shown(body));
        let seen = hexadecimal(&seen);
        let (fails, key) = (said("x-fail"), said("x-key").unwrap_or_default());
        if said("x-keep").is_some() {
            kept.keep(&key, &seen);
        }
        let tried = {
            let mut tries = tries.lock().expect("no thread panics with it");
            let tried = tries.entry(key).or_default();
            *tried += 1;
            *tried
        };
        let fails = fails.and_then(|fails| fails.parse::<u32>().ok());
        let failing = fails.is_none_or(|fails| tried <= fails);
        let status = said("x-status").filter(|_| failing).unwrap_or("200".into());
        let delay = said("x-delay").and_then(|delay| delay.parse().ok());
        if let Some(delay) = delay.filter(|_| failing) {
            #[allow(clippy::disallowed_methods)] // an app's own thread
            std::thread::sleep(Duration::from_millis(delay));
        }
        writer.write_all(answer(name, &status, tried, &head, &seen).as_bytes())?;
    }
}

fn answer(name: &str, status: &str, tried: u32, head: &str, seen: &str) -> String {
    let bare = head.starts_with("HEAD ") || matches!(status, "204" | "304");
    let body = if bare { "" } else { "the app's body" };
    let length = match status {
        "204" | "304" => String::new(),
        _ => format!("content-length: {}\r\n", "the app's body".len()),
    };
    format!(
        "HTTP/1.1 {status} Said\r\nx-app: {name}\r\nx-tried: {tried}\r\nx-seen: {seen}\r\nx-a: app\r\nx-list: one\r\nx-list: \
         two\r\ncontent-type: text/x-app\r\n{length}\r\n{body}"
    )
}

/// A body as the app says that it saw it: a long one, which no header could hold, by its length and its sum.
pub(super) fn shown(body: Vec<u8>) -> Vec<u8> {
    if body.len() < 1000 {
        return body;
    }
    let sum = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{} bytes of sum {sum:x}", body.len()).into_bytes()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Up to its empty line.
fn head(reader: &mut impl BufRead) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let before = head.len();
        reader.read_until(b'\n', &mut head)?;
        (head.len() > before).then_some(()).context("the end")?;
    }
    // As Latin-1, so that each byte stays one.
    Ok(head.into_iter().map(char::from).collect())
}

fn body(reader: &mut impl BufRead, length: usize, chunked: bool) -> Result<Vec<u8>> {
    let mut all = vec![0; length];
    reader.read_exact(&mut all)?;
    if !chunked {
        return Ok(all);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16)?;
        let mut part = vec![0; size + 2];
        reader.read_exact(&mut part)?;
        all.extend_from_slice(&part[..size]);
        if size == 0 {
            return Ok(all);
        }
    }
}
