//! A DNS question and what of its answer the tests look at, by hand: the resolver under test must not be the tester.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::Pod;

pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const NXDOMAIN: u8 = 3;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Times that a question is asked over UDP, where it may be lost.
const TIMES: usize = 3;

/// Asks over UDP from inside `pod`.
pub(crate) fn ask(pod: &Pod, server: SocketAddr, name: &str, kind: u16) -> Result<Answer> {
    let socket = pod.netns().within(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    socket.connect(server)?;
    let mut bytes = [0; 4096];
    let mut asked = 0;
    let n = loop {
        socket.send(&question(name, kind))?;
        asked += 1;
        match socket.recv(&mut bytes) {
            Err(error)
                if asked < TIMES
                    && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            answered => break answered.with_context(|| format!("no answer for {name}"))?,
        }
    };
    parse(&bytes[..n])
}

/// Asks over TCP from inside `pod`.
pub(crate) fn ask_tcp(pod: &Pod, server: SocketAddr, name: &str, kind: u16) -> Result<Answer> {
    let mut stream = pod.connect(server)?;
    let question = question(name, kind);
    stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
    stream.write_all(&question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    parse(&bytes)
}

const ID: [u8; 2] = [0x41, 0x42];

fn question(name: &str, kind: u16) -> Vec<u8> {
    // One question, recursion desired.
    let mut bytes = [&ID[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    ensure!(
        bytes.len() >= 12 && bytes[..2] == ID,
        "not the answer to our question"
    );
    let code = bytes[3] & 0x0f;
    let (questions, answers) = (
        u16::from_be_bytes([bytes[4], bytes[5]]),
        u16::from_be_bytes([bytes[6], bytes[7]]),
    );
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(bytes, at)? + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..answers {
        at = after_name(bytes, at)?;
        let head = bytes.get(at..at + 10).context("a record is cut short")?;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        let data = bytes
            .get(at + 10..at + 10 + length)
            .context("a record is cut short")?;
        if let Ok(v4) = <[u8; 4]>::try_from(data) {
            addresses.push(Ipv4Addr::from(v4).into());
        } else if let Ok(v6) = <[u8; 16]>::try_from(data)
            && head[..2] == AAAA.to_be_bytes()
        {
            addresses.push(Ipv6Addr::from(v6).into());
        }
        at += 10 + length;
    }
    Ok(Answer { code, addresses })
}

fn after_name(bytes: &[u8], mut at: usize) -> Result<usize> {
    loop {
        match *bytes.get(at).context("a name is cut short")? {
            0 => return Ok(at + 1),
            // A pointer ends a name.
            pointer if pointer >= 0xc0 => return Ok(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}
