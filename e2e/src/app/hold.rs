//! One TCP connection that lives: a number out and the same number back, ten times a second.
//!
//! Says once a second how many came back. Ends when it is told to, or with what broke the connection: a reset, an end, or a number
//! that is lost, doubled or overtaken. What comes after the last answer but the end breaks it too.

use std::{io::ErrorKind, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
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

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

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
                    timeout(PATIENCE, exchange(&mut stream, count)).await.context("no echo for 10 s")?.with_context(|| format!("after {count} numbers"))?;
                    count += 1;
                    if count.is_multiple_of(10) {
                        println!("{count}");
                    }
                }
            }
        }
        timeout(PATIENCE, nothing_is_left(stream))
            .await
            .context("no end for 10 s")??;
        println!("{count}");
        Ok(())
    }
}

async fn exchange(stream: &mut TcpStream, number: u64) -> Result<()> {
    let mut back = [0; 8];
    stream.write_all(&number.to_be_bytes()).await?;
    match stream.read_exact(&mut back).await {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            bail!("the connection was closed")
        }
        read => read?,
    };
    let back = u64::from_be_bytes(back);
    ensure!(back == number, "{back} came back for {number}");
    Ok(())
}

/// Our end is answered by theirs, and by no byte before it.
async fn nothing_is_left(mut stream: TcpStream) -> Result<()> {
    stream.shutdown().await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    ensure!(rest.is_empty(), "{} bytes more came back", rest.len());
    Ok(())
}
