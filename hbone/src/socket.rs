//! What this crate needs of the sockets it is given.

use std::time::Duration;

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Bytes the kernel may hold that it has not sent yet. Small, because what waits in the kernel can no
/// longer take turns with other streams, and because a peer that stops reading would otherwise cost
/// megabytes of kernel memory per connection.
const UNSENT: u32 = 128 << 10;

/// A byte stream that can be made ready for relaying, and ended so that its other end sees an error.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Sets what relaying needs, where there is such a thing.
    fn tune(&self) {}

    /// Makes the coming drop a reset instead of an orderly end, where there is such a thing.
    fn abort(&self) {}

    /// The TCP socket that it is, if it is nothing else: bytes may then pass it by shorter ways.
    ///
    /// # Errors
    /// Itself, if it is not.
    fn into_tcp(self) -> Result<TcpStream, Self>
    where
        Self: Sized,
    {
        Err(self)
    }
}

impl Socket for TcpStream {
    /// No delay: a relay has no use for waiting until there is more. Little unsent data in the
    /// kernel. A socket that refuses an option works without it. Marks, keepalive and timeouts are
    /// the business of whoever made the socket.
    fn tune(&self) {
        let _ = self.set_nodelay(true);
        hold_unsent(self, UNSENT as usize);
    }

    fn abort(&self) {
        // A linger of zero turns close into RST. If it cannot be set the peer sees an end.
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn into_tcp(self) -> Result<TcpStream, Self> {
        Ok(self)
    }
}

/// Says how many bytes the kernel shall hold at most that it has not sent yet. A socket that refuses works without it.
pub(crate) fn hold_unsent(tcp: &TcpStream, most: usize) {
    let most = u32::try_from(most).unwrap_or(UNSENT);
    let _ = SockRef::from(tcp).set_tcp_notsent_lowat(most);
}

/// Bytes that the kernel sends of this connection in one piece: whole segments, up to 64 KiB less what it keeps for heads. `None` where it
/// does not say. A piece of few bytes costs as much as a full one, so what is written at once had better be some of them.
pub(crate) fn piece(tcp: &TcpStream) -> Option<usize> {
    const MOST: usize = (64 << 10) - 321; // sk_gso_max_size without MAX_TCP_HEADER and one
    let segment = SockRef::from(tcp).tcp_mss().ok()? as usize;
    (segment > 0).then(|| (MOST / segment).max(1) * segment)
}

impl Socket for tokio::io::DuplexStream {}
impl Socket for crate::tunnel::TunnelIo {}
