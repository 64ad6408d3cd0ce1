//! An app's TCP socket that two hold: the task that copies, and the connection's driver, which writes to
//! it what it has opened while nothing waits before it.
//!
//! Reads and writes are made as tokio makes its own: one that was not filled, or not taken whole, has
//! found the socket's end for now, and no second call is spent on hearing so.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::socket::Socket;

/// The socket, and what the driver has done with it.
#[derive(Debug)]
pub(crate) struct App {
    tcp: TcpStream,
    /// Bytes given to the app, by whomever.
    received: Arc<AtomicU64>,
    /// The driver's write failed, or a look at it.
    broken: OnceLock<io::ErrorKind>,
}

impl App {
    pub(crate) fn new(tcp: TcpStream, received: Arc<AtomicU64>) -> Self {
        Self {
            tcp,
            received,
            broken: OnceLock::new(),
        }
    }

    /// One whose driver's write had failed so, before it was frozen.
    pub(crate) fn thawed(
        tcp: TcpStream,
        received: Arc<AtomicU64>,
        broken: Option<io::ErrorKind>,
    ) -> Self {
        let app = Self::new(tcp, received);
        if let Some(kind) = broken {
            let _ = app.broken.set(kind);
        }
        app
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(crate) fn broken(&self) -> Option<io::ErrorKind> {
        self.broken.get().copied()
    }

    /// Writes what the socket takes now, and counts it. A failure is left for whoever copies
    /// ([`Shared::poll_write`]); then, and when the socket is full, it is less than all.
    pub(crate) fn deliver(&self, pieces: &[IoSlice<'_>]) -> usize {
        match self.try_write(pieces) {
            Ok(n) => {
                self.received.fetch_add(n as u64, Ordering::Relaxed);
                n
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.fail(error.kind());
                }
                0
            }
        }
    }

    /// It has failed, as whoever copies will not hear otherwise.
    pub(crate) fn fail(&self, kind: io::ErrorKind) {
        let _ = self.broken.set(kind);
    }

    /// Ready when a read may find something.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_read_ready(cx)
    }

    pub(crate) fn try_read(&self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.once(Interest::READABLE, wanted, |tcp| {
            (&*SockRef::from(tcp)).read_vectored(pieces)
        })
    }

    /// Looks for an end or an error where nothing may be read yet: true when there is an end, "would
    /// block" when there is nothing at all.
    pub(crate) fn ended(&self) -> io::Result<bool> {
        let mut byte = [MaybeUninit::uninit()];
        let seen = self.tcp.try_io(Interest::READABLE, || {
            SockRef::from(&self.tcp).peek(&mut byte)
        });
        seen.map(|n| n == 0)
    }

    fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let wanted = pieces.iter().map(|piece| piece.len()).sum();
        self.once(Interest::WRITABLE, wanted, |tcp| {
            (&*SockRef::from(tcp)).write_vectored(pieces)
        })
    }

    /// Tries once. What came to less than was `wanted` counts as "would block" for the next time: whatever
    /// comes later makes the socket ready again.
    fn once(
        &self,
        interest: Interest,
        wanted: usize,
        call: impl FnOnce(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut done = None;
        let tried = self.tcp.try_io(interest, || match call(&self.tcp)? {
            n if n > 0 && n < wanted => {
                done = Some(n);
                Err(io::ErrorKind::WouldBlock.into())
            }
            n => Ok(n),
        });
        done.map_or(tried, Ok)
    }
}

/// The app's socket for whoever copies.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) Arc<App>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_readable(cx))?;
            let room = out.initialize_unfilled();
            match self.0.try_read(&mut [IoSliceMut::new(room)]) {
                Ok(n) => {
                    out.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.0.broken.get() {
            return Poll::Ready(Err((*kind).into()));
        }
        loop {
            ready!(self.0.tcp.poll_write_ready(cx))?;
            match self.0.try_write(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                tried => return Poll::Ready(tried),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // One that is not connected any more has no direction left to end.
        let done = match SockRef::from(&self.0.tcp).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        };
        Poll::Ready(done)
    }
}

impl Socket for Shared {
    fn tune(&self) {
        self.0.tcp.tune();
    }

    fn abort(&self) {
        self.0.tcp.abort();
    }
}
