//! The app behind both: raw, so that nothing of a request is lost or made better. It says in `x-seen` what it was sent, byte for
//! byte, and fails as often as `x-fail` asks, told apart by `x-key`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

type Tries = Arc<Mutex<HashMap<String, u32>>>;

/// Serves for as long as this program lives.
pub(super) fn serve(name: &str, listener: TcpListener) {
    let (name, tries) = (name.to_owned(), Tries::default());
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (name, tries) = (name.clone(), tries.clone());
            // Whatever breaks off is the client's matter.
            std::thread::spawn(move || drop(converse(&name, &tries, stream)));
        }
    });
}

fn converse(name: &str, tries: &Tries, stream: TcpStream) -> Result<()> {
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
        let mut body = body(&mut reader, length, said("transfer-encoding").is_some())?;
        let mut seen = head.clone().into_bytes();
        seen.append(&mut body);
        let (fails, key) = (said("x-fail"), said("x-key").unwrap_or_default());
        let tried = {
            let mut tries = tries.lock().expect("no thread panics with it");
            let tried = tries.entry(key).or_default();
            *tried += 1;
            *tried
        };
        let fails = fails.and_then(|fails| fails.parse::<u32>().ok());
        let failing = fails.is_none_or(|fails| tried <= fails);
        let status = said("x-status").filter(|_| failing).unwrap_or("200".into());
        writer.write_all(answer(name, &status, tried, &head, &seen).as_bytes())?;
    }
}

fn answer(name: &str, status: &str, tried: u32, head: &str, seen: &[u8]) -> String {
    let hex = seen.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let bare = head.starts_with("HEAD ") || matches!(status, "204" | "304");
    let body = if bare { "" } else { "the app's body" };
    let length = match status {
        "204" | "304" => String::new(),
        _ => format!("content-length: {}\r\n", "the app's body".len()),
    };
    format!(
        "HTTP/1.1 {status} Said\r\nx-app: {name}\r\nx-tried: {tried}\r\nx-seen: {hex}\r\nx-a: app\r\nx-list: one\r\nx-list: \
         two\r\ncontent-type: text/x-app\r\n{length}\r\n{body}"
    )
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
