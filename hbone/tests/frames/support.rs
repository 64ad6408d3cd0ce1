//! Frames written by hand, and a [`Mux`] that is fed with them.

use std::{collections::BTreeMap, time::Instant};

use hbone::{
    Authority, Connect,
    frames::{Code, Event, HEAD, Head, Mux, Settings, StreamId, Violation, flag, hpack, kind},
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) head: Head,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The number in the first four bytes, or behind the first four of a GOAWAY.
    pub(crate) fn number(&self) -> u32 {
        let at = if self.head.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let head = Head {
        length: payload.len() as u32,
        kind,
        flags,
        stream: StreamId(stream),
    };
    [&head.bytes()[..], payload].concat()
}

pub(crate) fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let head = Head::parse(bytes[..HEAD].try_into().unwrap());
        let (payload, rest) = bytes[HEAD..].split_at(head.length as usize);
        frames.push(Frame {
            head,
            payload: payload.to_vec(),
        });
        bytes = rest;
    }
    frames
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        hpack::put(&mut block, name, value.as_bytes());
    }
    block
}

pub(crate) fn connect() -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:80")])
}

pub(crate) fn get(more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", "a:1"),
    ];
    block(&[&fields[..], more].concat())
}

/// HEADERS that are whole.
pub(crate) fn headers(stream: u32, more: u8, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | more, stream, block)
}

pub(crate) fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let entry =
        |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(
        kind::SETTINGS,
        0,
        0,
        &entries.iter().flat_map(entry).collect::<Vec<u8>>(),
    )
}

pub(crate) fn acknowledgement() -> Vec<u8> {
    frame(kind::SETTINGS, flag::ACK, 0, &[])
}

pub(crate) fn to(authority: &str) -> Connect {
    Connect::to(authority.parse::<Authority>().unwrap())
}

/// The same connection, gone on with from its state; false when it is over.
pub(crate) fn hand_over(mux: &mut Mux) -> bool {
    let before = std::mem::replace(mux, Mux::client(&Settings::client()));
    let Some(state) = before.into_state() else {
        return false;
    };
    *mux = Mux::from_state(&state).unwrap();
    true
}

/// A [`Mux`], and what came of feeding it.
pub(crate) struct Side {
    pub(crate) mux: Mux,
    pub(crate) events: Vec<Event>,
    pub(crate) data: BTreeMap<u32, Vec<u8>>,
}

impl Side {
    pub(crate) fn new(mux: Mux) -> Self {
        Self {
            mux,
            events: Vec::new(),
            data: BTreeMap::new(),
        }
    }

    /// A server whose client has said hello; nothing is left to be sent.
    pub(crate) fn server(settings: &Settings) -> Self {
        let mut side = Self::new(Mux::server(settings));
        side.feed(PREFACE).unwrap();
        side.greeted()
    }

    /// A client whose server has said hello.
    pub(crate) fn client(settings: &Settings) -> Self {
        Self::new(Mux::client(settings)).greeted()
    }

    fn greeted(mut self) -> Self {
        self.feed(&settings(&[])).unwrap();
        self.feed(&acknowledgement()).unwrap();
        assert_eq!(
            self.events.drain(..).as_slice(),
            [Event::SettingsAcknowledged]
        );
        self.mux.out().clear();
        self
    }

    /// A server with a tunnel on stream 1.
    pub(crate) fn serving() -> Self {
        let mut side = Self::server(&Settings::server());
        side.feed(&headers(1, 0, &connect())).unwrap();
        side.mux
            .respond(StreamId(1), 200, &Default::default(), false)
            .unwrap();
        side.events.clear();
        side.mux.out().clear();
        side
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.feed_at(bytes, Instant::now())
    }

    pub(crate) fn feed_at(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let taken = self.mux.take(bytes, now)?;
            assert!(taken.used > 0, "progress is made");
            match taken.event {
                Some(Event::Data { stream, range, end }) => {
                    self.data
                        .entry(stream.0)
                        .or_default()
                        .extend_from_slice(&bytes[range]);
                    if end {
                        self.events.push(Event::Data {
                            stream,
                            range: 0..0,
                            end,
                        });
                    }
                }
                Some(event) => self.events.push(event),
                None => assert_eq!(taken.used, bytes.len()),
            }
            bytes = &bytes[taken.used..];
        }
        Ok(())
    }

    /// What is to be sent.
    pub(crate) fn sent(&mut self) -> Vec<Frame> {
        parse(&std::mem::take(self.mux.out()))
    }

    /// (kind, stream, number) of what is to be sent.
    pub(crate) fn said(&mut self) -> Vec<(u8, u32, u32)> {
        let short = |f: &Frame| (f.head.kind, f.head.stream.0, f.number());
        self.sent().iter().map(short).collect()
    }
}

pub(crate) fn reset(stream: u32, code: Code) -> (u8, u32, u32) {
    (kind::RST_STREAM, stream, code.0)
}
