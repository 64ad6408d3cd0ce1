//! The bytes under an HTTP connection, whatever carries them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hbone::TunnelIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection to an endpoint, or a client's with what was read of it already.
pub struct Stream {
    /// Read before anything else.
    first: Bytes,
    carrier: Carrier,
    doubt: Option<Box<Doubt>>,
}

/// Is shown what comes, before anybody else, until it knows what that is.
pub type Doubt = dyn FnMut(&[u8]) -> Known + Send + Sync;

/// What is known of what has come so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing; it passes.
    NotYet,
    /// It passes, and so does whatever follows.
    Passes,
    /// This goes no further, nor does what follows.
    Stops,
}

/// What carries it.
pub enum Carrier {
    /// A tunnel of the mesh.
    Tunnel(TunnelIo),
    /// As it is.
    Tcp(TcpStream),
    /// TLS that begins or ends here, over either.
    Tls(Box<TlsStream<Stream>>),
}

impl Stream {
    /// Over `carrier`, of which `first` has been read.
    pub fn new(carrier: Carrier, first: Bytes) -> Self {
        Self {
            first,
            carrier,
            doubt: None,
        }
    }

    /// The same, of which nobody knows yet what is spoken over it. Whoever stops it ends it, too: it says nothing more.
    pub fn doubted(self, by: Box<Doubt>) -> Self {
        Self {
            doubt: Some(by),
            ..self
        }
    }
}

impl From<TunnelIo> for Stream {
    fn from(tunnel: TunnelIo) -> Self {
        Carrier::Tunnel(tunnel).into()
    }
}

impl From<Carrier> for Stream {
    fn from(carrier: Carrier) -> Self {
        Self::new(carrier, Bytes::new())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.first.has_remaining() {
            let n = this.first.len().min(out.remaining());
            out.put_slice(&this.first.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let read = match &mut this.carrier {
            Carrier::Tunnel(io) => Pin::new(io).poll_read(cx, out),
            Carrier::Tcp(io) => Pin::new(io).poll_read(cx, out),
            Carrier::Tls(io) => Pin::new(&mut **io).poll_read(cx, out),
        };
        if let (Some(doubt), Poll::Ready(Ok(()))) = (&mut this.doubt, &read) {
            match doubt(&out.filled()[before..]) {
                Known::NotYet => {}
                Known::Passes => this.doubt = None,
                Known::Stops => {
                    out.set_filled(before);
                    return Poll::Pending;
                }
            }
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Tunnel(io) => Pin::new(io).poll_write(cx, bytes),
            Carrier::Tcp(io) => Pin::new(io).poll_write(cx, bytes),
            Carrier::Tls(io) => Pin::new(&mut **io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Tunnel(io) => Pin::new(io).poll_flush(cx),
            Carrier::Tcp(io) => Pin::new(io).poll_flush(cx),
            Carrier::Tls(io) => Pin::new(&mut **io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
            Carrier::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Carrier::Tls(io) => Pin::new(&mut **io).poll_shutdown(cx),
        }
    }
}

impl hbone::Socket for Stream {}
