//! One TCP connection that lives: a byte out and the same byte back, ten times a second.
//!
//! Says once a second how many came back. Ends when it is told to, or with what broke the connection.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};

#[derive(Args)]
pub(crate) struct Hold {
    /// host:port of an echo.
    to: String,
}

impl Hold {
    #[allow(clippy::print_stdout)] // the count is this program's product
    pub(crate) async fn run(self) -> Result<()> {
        let mut stream = TcpStream::connect(&self.to).await?;
        stream.set_nodelay(true)?;
        println!("connected from {}", stream.local_addr()?);
        let mut pace = interval(Duration::from_millis(100));
        let mut count = 0u64;
        let end = crate::told_to_end();
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                _ = pace.tick() => {
                    timeout(Duration::from_secs(10), exchange(&mut stream)).await.context("no echo for 10 s")?.with_context(|| format!("after {count} bytes"))?;
                    count += 1;
                    if count.is_multiple_of(10) {
                        println!("{count}");
                    }
                }
            }
        }
        println!("{count}");
        Ok(())
    }
}

async fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte).await?;
    ensure!(
        stream.read(&mut byte).await? == 1,
        "the connection was closed"
    );
    Ok(())
}
