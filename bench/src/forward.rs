//! A bare forwarder: accept, connect, copy both ways, no crypto, no policy, no report.
//! Two of them in a row are the floor that any pair of proxies stands on.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::net::{TcpSocket, TcpStream};

/// Bytes of each direction's buffer; large enough that system calls are not what is measured.
const BUFFER: usize = 128 * 1024;

/// Forwards every connection that arrives on `listen` to `to`, until it is killed.
pub(crate) async fn forward(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(4096)?;
    loop {
        let Ok((mut downstream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(async move {
            let Ok(mut upstream) = TcpStream::connect(to).await else {
                return;
            };
            let _ = downstream.set_nodelay(true);
            let _ = upstream.set_nodelay(true);
            // Ends with whichever side ends; errors are the peers' business.
            let _ = tokio::io::copy_bidirectional_with_sizes(
                &mut downstream,
                &mut upstream,
                BUFFER,
                BUFFER,
            )
            .await;
        });
    }
}
