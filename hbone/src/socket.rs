//! Options of the sockets this crate is given.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Bytes the kernel may hold that it has not sent yet. Small, because what waits in the kernel can no
/// longer take turns with other streams, and because a peer that stops reading would otherwise cost
/// megabytes of kernel memory per connection.
const UNSENT: u32 = 128 << 10;

/// What every TCP connection of a proxy wants: no delay, keepalive after 180 s every 180 s nine times
/// (wire contract), and little unsent data in the kernel. A socket that refuses an option works
/// without it.
pub fn tune(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(180))
        .with_interval(Duration::from_secs(180))
        .with_retries(9);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
}
