//! A client that speaks HTTP/2 frame by frame, so that it can also speak it badly.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::Pod;

use super::raw::{
    self, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame,
};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// An answer.
    Status(u16),
    /// Its stream was reset, with that code.
    Reset(u32),
    /// The connection was ended, with that code if one was said.
    Ended(Option<u32>),
}

/// It.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    bytes: Vec<u8>,
    /// The status that stands in the other end's table.
    known: u16,
}

impl Peer {
    /// Connected, and greeted with empty SETTINGS.
    pub(crate) fn to(pod: &Pod, at: SocketAddr) -> Result<Self> {
        Self::saying(pod, at, &[])
    }

    /// The same with SETTINGS.
    pub(crate) fn saying(pod: &Pod, at: SocketAddr, settings: &[(u8, u32)]) -> Result<Self> {
        let stream = pod.connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        let mut peer = Self {
            stream,
            bytes: Vec::new(),
            known: 0,
        };
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&[0, *id][..], &value.to_be_bytes()].concat())
            .collect();
        peer.say(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat())?;
        Ok(peer)
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("cannot say it")
    }

    /// The next frame; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take() {
                if frame.kind == SETTINGS && frame.flags & raw::ACK == 0 {
                    let _ = self.say(&raw::frame(SETTINGS, raw::ACK, 0, &[]));
                }
                return Ok(Some(frame));
            }
            let mut part = vec![0; 64 << 10];
            match self.stream.read(&mut part) {
                Ok(0) => return Ok(None),
                Ok(n) => self.bytes.extend_from_slice(&part[..n]),
                Err(error) if is_late(&error) => bail!("nothing came"),
                // A reset is an end.
                Err(_) => return Ok(None),
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let head = self.bytes.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if self.bytes.len() < 9 + length {
            return None;
        }
        let rest = self.bytes.split_off(9 + length);
        let bytes = std::mem::replace(&mut self.bytes, rest);
        Some(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]) & 0x7fff_ffff,
            payload: bytes[9..].to_vec(),
        })
    }

    /// A request without body, and what becomes of it.
    pub(crate) fn ask(&mut self, stream: u32, fields: &[(&str, &str)]) -> Result<Answered> {
        let block = block(fields);
        self.say(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block))?;
        self.answered(stream)
    }

    /// What becomes of a request.
    pub(crate) fn answered(&mut self, stream: u32) -> Result<Answered> {
        let mut code = None;
        while let Some(frame) = self.next()? {
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    // The table may be told its size first. From 62 on it is one that was said before.
                    let mut frame = frame;
                    let sizes = frame
                        .payload
                        .iter()
                        .take_while(|byte| **byte & 0xe0 == 0x20);
                    let sizes = sizes.count();
                    frame.payload.drain(..sizes);
                    if frame.payload.first().is_none_or(|first| *first < 0x80 | 62) {
                        self.known = frame.status();
                    }
                    return Ok(Answered::Status(self.known));
                }
                RST_STREAM if frame.stream == stream => return Ok(Answered::Reset(frame.code())),
                // What was begun before is still answered.
                GOAWAY => code = Some(frame.code()),
                _ => {}
            }
        }
        Ok(Answered::Ended(code))
    }

    /// Says something over and over, until the other end has ended the connection; how often, and the code that was said.
    /// None if it never did.
    pub(crate) fn flood(
        &mut self,
        most: u32,
        piece: impl Fn(u32) -> Vec<u8>,
    ) -> Result<Option<(u32, Option<u32>)>> {
        const AT_A_TIME: u32 = 100;
        self.stream.set_nonblocking(true)?;
        let (mut said, mut code, begun) = (0, None, Instant::now());
        let mut waiting: Vec<u8> = Vec::new();
        while (said < most || !waiting.is_empty()) && begun.elapsed() < LONG {
            if waiting.is_empty() {
                let end = (said + AT_A_TIME).min(most);
                waiting = (said..end).flat_map(&piece).collect();
                said = end;
            }
            match self.stream.write(&waiting) {
                Ok(n) => drop(waiting.drain(..n)),
                #[allow(clippy::disallowed_methods)] // a test's own thread
                Err(error) if is_late(&error) => std::thread::sleep(BREATH),
                Err(_) => return Ok(Some((said, self.last_words(code)))),
            }
            let mut part = vec![0; 64 << 10];
            match self.stream.read(&mut part) {
                Ok(0) => return Ok(Some((said, code))),
                Ok(n) => self.bytes.extend_from_slice(&part[..n]),
                Err(error) if is_late(&error) => {}
                Err(_) => return Ok(Some((said, self.last_words(code)))),
            }
            code = self.last_words(code);
        }
        // All is said: it may still be thought about.
        self.stream.set_nonblocking(false)?;
        loop {
            match self.next() {
                Ok(Some(frame)) if frame.kind == GOAWAY => code = Some(frame.code()),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Some((said, code))),
                Err(_) => return Ok(None),
            }
        }
    }

    fn last_words(&mut self, mut code: Option<u32>) -> Option<u32> {
        while let Some(frame) = self.take() {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }
}

/// A header block of literals that are never indexed, of any length below 16 KiB.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        literal(&mut out, name);
        literal(&mut out, value);
    }
    out
}

/// A literal of HPACK, not compressed.
pub(crate) fn literal(out: &mut Vec<u8>, text: &str) {
    let length = text.len();
    if length < 127 {
        out.push(length as u8);
    } else {
        out.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            out.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text.as_bytes());
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// For one answer.
const SOON: Duration = Duration::from_secs(60);
/// For a flood.
const LONG: Duration = Duration::from_secs(120);
/// Where the other end has no room for more, it is left the processor.
const BREATH: Duration = Duration::from_millis(1);
