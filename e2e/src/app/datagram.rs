//! One datagram there, and what comes back.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::{
    net::{UdpSocket, lookup_host},
    time::timeout,
};

#[derive(Args)]
pub(crate) struct Datagram {
    /// host:port of a server.
    to: String,
    /// Milliseconds to wait for the answer.
    #[arg(long, default_value_t = 2000)]
    wait: u64,
}

impl Datagram {
    #[allow(clippy::print_stdout)] // the answer is this program's product
    pub(crate) async fn run(self) -> Result<()> {
        let to = lookup_host(&self.to).await?.next();
        let to = to.context("the name leads nowhere")?;
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        socket.send(b"who is there?").await?;
        let mut answer = vec![0; 65_536];
        let within = Duration::from_millis(self.wait);
        let heard = timeout(within, socket.recv(&mut answer));
        let n = heard.await.context("no answer")??;
        println!("{}", String::from_utf8_lossy(&answer[..n]));
        Ok(())
    }
}
