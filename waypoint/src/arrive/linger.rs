//! A client's connection that is ended in good order.
//!
//! When we have said our last word and the client has not, what it still sends is taken and thrown away for a while. To
//! drop the connection at once would be a reset, and a reset destroys what the client has not read yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ops::drain::Drain;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::upstream::Stream;

/// A connection that lingers when it is dropped after its last word.
pub(super) struct Linger {
    stream: Option<Stream>,
    drain: Drain,
    said_all: bool,
    heard_all: bool,
}

impl Linger {
    pub(super) fn new(stream: Stream, drain: Drain) -> Self {
        Self {
            stream: Some(stream),
            drain,
            said_all: false,
            heard_all: false,
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        Ok(Pin::new(self.stream.as_mut().ok_or_else(gone)?))
    }
}

impl AsyncRead for Linger {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (out.filled().len(), out.remaining() > 0);
        let read = ready!(self.stream()?.poll_read(cx, out));
        self.heard_all |= read.is_err() || room && out.filled().len() == before;
        Poll::Ready(read)
    }
}

impl AsyncWrite for Linger {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = ready!(self.stream()?.poll_shutdown(cx));
        self.said_all |= shut.is_ok();
        Poll::Ready(shut)
    }
}

impl Drop for Linger {
    fn drop(&mut self) {
        let stream = self.stream.take();
        let Some(mut stream) = stream.filter(|_| self.said_all && !self.heard_all) else {
            return;
        };
        let now = self.drain.now().clone();
        self.drain.spawn(async move {
            let mut thrown_away = [0; 2048];
            let listening = async { while let Ok(1..) = stream.read(&mut thrown_away).await {} };
            let listening = tokio::time::timeout(PATIENCE, listening);
            now.run_until_cancelled(listening).await;
        });
    }
}

/// A client that has read an end answers with its own within a round trip.
const PATIENCE: Duration = Duration::from_secs(5);
