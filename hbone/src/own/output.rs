//! What leaves a connection: frames are sealed into one buffer, and the buffer goes to the socket.
//!
//! The buffer is small on purpose: what is sealed can no longer take turns with other streams. Those
//! who have more to send wait until some of it is with the kernel ([`Output::full`]). How small, and how much
//! the kernel holds, depends on the path (`pace`).

use std::{
    any::Any,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use nix::sys::socket::MsgFlags;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::TcpStream,
};

use super::pace::Pace;
use crate::{
    frames,
    records::{self, ContentType, HEAD, MOST, RecordError, Sealer, TAIL},
};

/// A socket, whatever it is.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {
    /// The TCP socket that it is, if it is one. To be asked of the socket itself: its box is another.
    fn tcp(&self) -> Option<&TcpStream>;
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {
    fn tcp(&self) -> Option<&TcpStream> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Bytes sealed and not with the kernel yet, beyond which nobody may add more, however fast the path: what a 10 Gb/s
/// link takes in 0.1 ms.
pub(crate) const SEALED: usize = 128 << 10;
/// A message this small need not wait for that: it is what somebody waits for an answer to. Its
/// neighbours together may fill as much again.
pub(crate) const SMALL: usize = 4 << 10;
/// A buffer of this capacity stays when it is empty.
const KEPT: usize = 2 << 10;

pub(crate) struct Output {
    sealer: Sealer,
    bytes: Vec<u8>,
    /// How many of `bytes` are with the kernel.
    written: usize,
    pace: Pace,
    /// The socket takes nothing more: what is to be sent is dropped.
    gone: bool,
}

impl Output {
    /// Sends `unsent` first, which somebody else has sealed: the handshake its last flight, or whoever stopped
    /// in the middle of the connection.
    pub(crate) fn new(sealer: Sealer, unsent: Vec<u8>) -> Self {
        Self {
            sealer,
            bytes: unsent,
            written: 0,
            pace: Pace::default(),
            gone: false,
        }
    }

    /// The socket takes nothing more.
    pub(crate) fn give_up(&mut self) {
        self.gone = true;
        self.written = 0;
        self.bytes = Vec::new();
    }

    /// How to go on with sealing, and what is sealed and not sent.
    pub(crate) fn state(&self) -> (records::State, &[u8]) {
        (self.sealer.state(), &self.bytes[self.written..])
    }

    pub(crate) fn unsent(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Too much waits for one who has `wanted` bytes to send.
    pub(crate) fn full(&self, wanted: usize) -> bool {
        let small = wanted <= SMALL;
        let most = if small { 2 * SEALED } else { self.most() };
        self.unsent() >= most
    }

    /// Bytes that may wait here before somebody with more than a small message adds to them.
    pub(crate) fn most(&self) -> usize {
        self.pace.bytes()
    }

    /// Records that may be made at once.
    pub(crate) fn at_once(&self) -> usize {
        self.pace.records()
    }

    /// Seals control frames and empties their buffer.
    pub(crate) fn control(&mut self, frames: &mut Vec<u8>) -> Result<(), RecordError> {
        let records = frames.len().div_ceil(MOST);
        self.make_room(frames.len() + records * (HEAD + TAIL));
        for part in frames.chunks(MOST) {
            self.seal(&[part])?;
        }
        frames.clear();
        if frames.capacity() > KEPT {
            *frames = Vec::new();
        }
        Ok(())
    }

    /// Seals one DATA frame. The first record holds its head.
    pub(crate) fn data(
        &mut self,
        head: &[u8; frames::HEAD],
        payload: &[u8],
    ) -> Result<(), RecordError> {
        let (first, rest) = payload.split_at(payload.len().min(MOST - frames::HEAD));
        let records = 1 + rest.len().div_ceil(MOST);
        self.make_room(frames::HEAD + payload.len() + records * (HEAD + TAIL));
        self.seal(&[head, first])?;
        for part in rest.chunks(MOST) {
            self.seal(&[part])?;
        }
        Ok(())
    }

    /// How many records may be made elsewhere and given to [`Output::sealed`]. When it was none, our key
    /// has changed.
    pub(crate) fn records(&mut self) -> Result<usize, RecordError> {
        if self.sealer.before_update() == 0 {
            self.sealer.update(&mut self.bytes, false)?;
        }
        Ok(usize::try_from(self.sealer.before_update()).unwrap_or(usize::MAX))
    }

    /// Seals one of those.
    pub(crate) fn seal_in_place(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        self.sealer.data_in_place(record)
    }

    /// Sends records that were made elsewhere: to the socket at once, as far as nothing waits before them
    /// and it takes them. The rest waits here.
    pub(crate) fn sealed(
        &mut self,
        mut records: &[u8],
        io: &mut dyn Io,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        while self.unsent() == 0 && !records.is_empty() {
            match write(&mut self.pace, &mut *io, cx, records) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => records = &records[n..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if !records.is_empty() {
            self.make_room(records.len());
            self.bytes.extend_from_slice(records);
        }
        Ok(())
    }

    /// Follows the peer's request for another key before the next record, however often it asks.
    pub(crate) fn answer(&mut self) {
        self.sealer.answer();
    }

    /// Changes our key, and asks the peer to change its own.
    pub(crate) fn ask_for_key(&mut self) -> Result<(), RecordError> {
        self.sealer.update(&mut self.bytes, true)
    }

    /// Says why the connection ends, or that it ends in order. Nothing may be sealed after it.
    pub(crate) fn last_words(&mut self, alert: Option<u8>) -> Result<(), RecordError> {
        match alert {
            Some(alert) => self.sealer.alert(&mut self.bytes, alert),
            None => self.sealer.close(&mut self.bytes),
        }
    }

    /// Writes what waits. Ready when nothing does.
    pub(crate) fn poll_write(
        &mut self,
        io: &mut dyn Io,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unsent() > 0 && !self.gone {
            let rest = &self.bytes[self.written..];
            match ready!(write(&mut self.pace, &mut *io, cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.written = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT {
            // An idle connection holds no buffer.
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Room for `more` bytes, without holding on to what has been written.
    fn make_room(&mut self, more: usize) {
        if self.written > self.unsent() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        self.bytes.reserve(more);
    }

    fn seal(&mut self, parts: &[&[u8]]) -> Result<(), RecordError> {
        let start = self.sealer.begin(&mut self.bytes);
        parts
            .iter()
            .for_each(|part| self.bytes.extend_from_slice(part));
        self.sealer
            .finish(&mut self.bytes, start, ContentType::Data)
    }
}

/// Writes once, as much as is right for the path.
fn write(
    pace: &mut Pace,
    io: &mut dyn Io,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let written = match ((*io).tcp(), pace.piece()) {
        (Some(tcp), Some(piece)) => write_apart(tcp, cx, &bytes[..bytes.len().min(piece)]),
        _ => Pin::new(&mut *io).poll_write(cx, bytes),
    };
    match &written {
        Poll::Ready(Ok(n)) => pace.took(*n, Instant::now),
        Poll::Ready(Err(_)) => {}
        Poll::Pending => {
            let changed = pace.is_full(Instant::now);
            if let (true, Some(tcp)) = (changed, (*io).tcp()) {
                pace.tell(tcp);
            }
        }
    }
    written
}

/// Writes bytes to which the kernel adds none of the next write: a segment that may still grow to 64 KiB is beyond
/// what the kernel was told to hold.
fn write_apart(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    const APART: MsgFlags = MsgFlags::MSG_EOR.union(MsgFlags::MSG_NOSIGNAL);
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let send = || SockRef::from(tcp).send_with_flags(bytes, APART.bits());
        match tcp.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            tried => return Poll::Ready(tried),
        }
    }
}
