//! Watches the frames that pass between TLS and the HTTP/2 engine.
//!
//! Bytes enter on their way up (what the peer sent) and down (what we send); they leave unchanged.
//! From the 9-byte heads alone things are learnt that the engine does not tell:
//!
//! 1. floods: how often the peer sends frames that cost work and carry nothing (`Inbound`);
//! 2. stall: how much of the peer's connection window our unread data uses up (`Outbound`), which is
//!    what the pool looks at before it puts one more stream on a connection;
//! 3. refusals: which streams the engine resets by itself, before anybody else hears of them;
//! 4. and, on a client's connection, that the server has refused our handshake: with TLS 1.3 that is heard when it is over
//!    for us, in place of the server's first frame. It may lie there while we write, and the write fails first: then
//!    nothing more is written, and what the server has said is still read.
//!
//! The cost is a handful of comparisons per frame; nothing is allocated or copied.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    limits::{Budget, Refusal},
    tls::{Alert, TlsError},
};

/// Length of the client's connection preface, which is no frame.
const PREFACE: u32 = 24;
/// Window of a connection before any WINDOW_UPDATE (RFC 9113, 6.9.2).
const FIRST_WINDOW: i64 = 65_535;

/// What has been learnt about a connection; shared with whoever decides about it.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// What the peer allows us to send on the connection now.
    left: AtomicI64,
    /// The most it ever allowed.
    most: AtomicI64,
    /// A flood, once seen: 0 = none, else index into `FLOODS` plus one.
    flood: AtomicU8,
    /// The peer has sent GOAWAY.
    going_away: AtomicBool,
    /// Streams that the peer reset before they were answered.
    early_resets: Mutex<Budget>,
    /// Streams that the engine reset because they made no sense, not counted yet.
    malformed: AtomicU32,
    /// Streams that the engine reset because too many were open, not counted yet.
    surplus: AtomicU32,
    /// The alert with which the server has refused our handshake, 0 if it has not: that number is none.
    refusal: AtomicU8,
}

const FLOODS: [Refusal; 5] = [
    Refusal::PingFlood,
    Refusal::SettingsFlood,
    Refusal::EmptyDataFlood,
    Refusal::ResetFlood,
    Refusal::IdleFrameFlood,
];

impl Gauge {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(FIRST_WINDOW),
            most: AtomicI64::new(FIRST_WINDOW),
            flood: AtomicU8::new(0),
            going_away: AtomicBool::new(false),
            early_resets: Mutex::new(Budget::early_resets()),
            malformed: AtomicU32::new(0),
            surplus: AtomicU32::new(0),
            refusal: AtomicU8::new(0),
        })
    }

    /// True when at least half of the peer's connection window is filled with data it has not read.
    pub(crate) fn stalled(&self) -> bool {
        self.left.load(Ordering::Relaxed) * 2 < self.most.load(Ordering::Relaxed)
    }

    /// The peer wants no more streams here.
    pub(crate) fn going_away(&self) -> bool {
        self.going_away.load(Ordering::Relaxed)
    }

    pub(crate) fn goes_away(&self) {
        self.going_away.store(true, Ordering::Relaxed);
    }

    /// The flood that was seen, if any.
    pub(crate) fn flood(&self) -> Option<Refusal> {
        let index = self.flood.load(Ordering::Relaxed);
        FLOODS.get(usize::from(index).checked_sub(1)?).copied()
    }

    pub(crate) fn saw_flood(&self, kind: Refusal) {
        if let Some(index) = FLOODS.iter().position(|f| *f == kind) {
            // FLOODS has five elements, so the index fits.
            let _ = self.flood.compare_exchange(
                0,
                index as u8 + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    /// With what the server has refused our handshake, if it has.
    pub(crate) fn refusal(&self) -> Option<Alert> {
        let alert = self.refusal.load(Ordering::Relaxed);
        (alert != 0).then_some(Alert(alert))
    }

    pub(crate) fn saw_refusal(&self, alert: Alert) {
        self.refusal.store(alert.0, Ordering::Relaxed);
    }

    /// Counts a stream that was reset before its answer.
    pub(crate) fn reset_early(&self) {
        let mut budget = self
            .early_resets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !budget.take(Instant::now) {
            self.saw_flood(Refusal::ResetFlood);
        }
    }

    /// Hands over each stream that the engine refused since the last time.
    pub(crate) fn refused_streams(&self, mut each: impl FnMut(Refusal)) {
        for (count, kind) in [
            (&self.malformed, Refusal::MalformedStream),
            (&self.surplus, Refusal::SurplusStream),
        ] {
            // Asked at each poll, and nearly always zero: a look is cheaper than an exchange.
            if count.load(Ordering::Relaxed) > 0 {
                (0..count.swap(0, Ordering::Relaxed)).for_each(|_| each(kind));
            }
        }
    }

    /// Counts a stream that our own engine refused.
    pub(crate) fn refused(&self, kind: Refusal) {
        let count = match kind {
            Refusal::SurplusStream => &self.surplus,
            _ => &self.malformed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn sent_reset(&self, code: u32) {
        let count = match code {
            PROTOCOL_ERROR => &self.malformed,
            REFUSED_STREAM => &self.surplus,
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn granted(&self, bytes: u32) {
        let left = self.left.fetch_add(i64::from(bytes), Ordering::Relaxed) + i64::from(bytes);
        self.most.fetch_max(left, Ordering::Relaxed);
    }

    fn sent(&self, bytes: u32) {
        self.left.fetch_sub(i64::from(bytes), Ordering::Relaxed);
    }
}

/// A frame's head, and of a WINDOW_UPDATE and a RST_STREAM the number in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
    /// Increment or error code.
    number: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM_OR_ACK: u8 = 1;
/// Error codes of RST_STREAM with which the engine refuses a stream (RFC 9113, 7).
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;

/// Finds frame heads in a byte stream that arrives in pieces.
#[derive(Debug)]
struct Heads {
    /// Bytes to pass over before the next head.
    skip: u32,
    /// The head so far; the four payload bytes of a WINDOW_UPDATE or RST_STREAM are kept behind it.
    head: [u8; 13],
    have: u8,
}

impl Heads {
    fn new(skip: u32) -> Self {
        Self {
            skip,
            head: [0; 13],
            have: 0,
        }
    }

    fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = bytes.len().min(self.skip as usize);
                self.skip -= n as u32; // n <= skip
                bytes = &bytes[n..];
                continue;
            }
            let want = if self.have >= 9 { 13 } else { 9 };
            let n = bytes.len().min(want - usize::from(self.have));
            let at = usize::from(self.have);
            self.head[at..at + n].copy_from_slice(&bytes[..n]);
            self.have += n as u8; // n <= 13
            bytes = &bytes[n..];
            if usize::from(self.have) == want {
                self.complete(&mut each);
            }
        }
    }

    fn complete(&mut self, each: &mut impl FnMut(Head)) {
        let h = &self.head;
        let mut head = Head {
            length: u32::from_be_bytes([0, h[0], h[1], h[2]]),
            kind: h[3],
            flags: h[4],
            stream: u32::from_be_bytes([h[5], h[6], h[7], h[8]]) & 0x7fff_ffff,
            number: 0,
        };
        if self.have == 9 {
            if matches!(head.kind, WINDOW_UPDATE | RST_STREAM) && head.length == 4 {
                return; // four more bytes make it whole
            }
            self.skip = head.length;
        } else {
            head.number = u32::from_be_bytes([h[9], h[10], h[11], h[12]]) & 0x7fff_ffff;
        }
        self.have = 0;
        each(head);
    }
}

/// Counts what the peer sends against budgets.
#[derive(Debug)]
struct Inbound {
    pings: Budget,
    settings: Budget,
    empty: Budget,
    resets: Budget,
    idle: Budget,
}

impl Inbound {
    fn new() -> Self {
        Self {
            pings: Budget::pings(),
            settings: Budget::settings(),
            // The engine ends a connection after 100 of these in its whole life; this gives it its name.
            empty: Budget::empty(),
            resets: Budget::resets(),
            idle: Budget::idle(),
        }
    }

    fn saw(&mut self, head: Head, gauge: &Gauge) {
        let (budget, kind) = match head.kind {
            DATA if head.length == 0 && head.flags & END_STREAM_OR_ACK == 0 => {
                (&mut self.empty, Refusal::EmptyDataFlood)
            }
            DATA | HEADERS | CONTINUATION => return,
            GOAWAY => {
                gauge.goes_away();
                (&mut self.idle, Refusal::IdleFrameFlood)
            }
            WINDOW_UPDATE => {
                if head.stream == 0 {
                    gauge.granted(head.number);
                }
                return;
            }
            PING => (&mut self.pings, Refusal::PingFlood),
            SETTINGS => (&mut self.settings, Refusal::SettingsFlood),
            RST_STREAM => (&mut self.resets, Refusal::ResetFlood),
            // PRIORITY, PUSH_PROMISE (an error anyway) and kinds that do not exist yet.
            _ => (&mut self.idle, Refusal::IdleFrameFlood),
        };
        if !budget.take(Instant::now) {
            gauge.saw_flood(kind);
        }
    }
}

/// An I/O object whose frames are watched.
#[derive(Debug)]
pub(crate) struct Gauged<T> {
    io: T,
    gauge: Arc<Gauge>,
    received: Heads,
    inbound: Inbound,
    sent: Heads,
    /// None on a server's connection.
    ours: Option<Ours>,
}

/// What of a client's connection is noticed beside.
#[derive(Debug, Default)]
struct Ours {
    /// The server has said something.
    heard: bool,
    /// A write has failed.
    mute: bool,
}

impl<T> Gauged<T> {
    /// Watches a connection on which we are the server.
    pub(crate) fn server(io: T, gauge: Arc<Gauge>) -> Self {
        Self {
            io,
            gauge,
            received: Heads::new(PREFACE),
            inbound: Inbound::new(),
            sent: Heads::new(0),
            ours: None,
        }
    }

    /// Watches a connection on which we are the client.
    pub(crate) fn client(io: T, gauge: Arc<Gauge>) -> Self {
        Self {
            io,
            gauge,
            received: Heads::new(0),
            inbound: Inbound::new(),
            sent: Heads::new(PREFACE),
            ours: Some(Ours::default()),
        }
    }

    fn is_mute(&self) -> bool {
        self.ours.as_ref().is_some_and(|ours| ours.mute)
    }

    /// What a write of ours is to be taken for: one that failed, for one of `all`, which goes nowhere.
    fn written<R>(&mut self, polled: Poll<io::Result<R>>, all: R) -> Poll<io::Result<R>> {
        match (&mut self.ours, polled) {
            (Some(ours), Poll::Ready(Err(error))) => {
                tracing::debug!(%error, "a write failed; what the server has said is still read");
                ours.mute = true;
                Poll::Ready(Ok(all))
            }
            (_, polled) => polled,
        }
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        let gauge = &self.gauge;
        self.sent.feed(bytes, |head| match head.kind {
            DATA => gauge.sent(head.length),
            RST_STREAM => gauge.sent_reset(head.number),
            _ => {}
        });
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gauged<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        let (inbound, gauge) = (&mut this.inbound, &this.gauge);
        if let Some(ours) = &mut this.ours {
            ours.heard |= buf.filled().len() > before;
            if let Poll::Ready(Err(error)) = &polled
                && !ours.heard
                && let TlsError::Alert(alert) = TlsError::from_io(error)
            {
                gauge.saw_refusal(alert);
            }
        }
        this.received
            .feed(&buf.filled()[before..], |head| inbound.saw(head, gauge));
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gauged<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_mute() {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = polled {
            self.note_sent(&buf[..n]);
        }
        self.written(polled, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_mute() {
            return Poll::Ready(Ok(all));
        }
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = polled {
            for buf in bufs {
                let n = left.min(buf.len());
                self.note_sent(&buf[..n]);
                left -= n;
            }
        }
        self.written(polled, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_mute() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.written(polled, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
