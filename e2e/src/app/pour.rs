//! One TCP connection that carries a bulk: bytes that are known by their place go to an echo and come back.
//!
//! 1. a burst of 1 MiB, `--bursts` times a second, as fast as the connection takes it
//! 2. beside it what comes back is compared byte by byte; once a second, how many came
//! 3. told to end, it ends its own direction; then all that went out must have come back, and after it the end

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, MissedTickBehavior, interval, timeout},
};

#[derive(Args)]
pub(crate) struct Pour {
    /// host:port of an echo.
    to: String,
    /// MiB a second, each at once.
    #[arg(long, default_value_t = 4)]
    bursts: u32,
}

const BURST: usize = 1 << 20;
/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(10);

impl Pour {
    #[allow(clippy::print_stdout)] // the count is this program's product
    pub(crate) async fn run(self) -> Result<()> {
        let stream = TcpStream::connect(&self.to).await?;
        println!("connected from {}", stream.local_addr()?);
        let (from, to) = stream.into_split();
        let (sent, back) = tokio::try_join!(send(to, self.bursts), compare(from))?;
        ensure!(sent == back, "{sent} bytes went out, {back} came back");
        println!("{back}");
        Ok(())
    }
}

async fn send(mut to: OwnedWriteHalf, bursts: u32) -> Result<u64> {
    let mut burst = vec![0; BURST];
    let mut pace = interval(Duration::from_secs(1) / bursts);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    let end = crate::told_to_end();
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = pace.tick() => {
                fill(&mut burst, sent);
                timeout(PATIENCE, to.write_all(&burst)).await.context("nothing was taken for 10 s")?.with_context(|| format!("while sending, after {sent} bytes"))?;
                sent += BURST as u64;
            }
        }
    }
    to.shutdown().await?;
    Ok(sent)
}

#[allow(clippy::print_stdout)] // the count is this program's product
async fn compare(mut from: OwnedReadHalf) -> Result<u64> {
    let (mut block, mut expected) = (vec![0; BURST / 8], vec![0; BURST / 8 + WORD]);
    let (mut back, mut told) = (0, Instant::now());
    loop {
        let count = timeout(PATIENCE, from.read(&mut block))
            .await
            .context("nothing came back for 10 s")?
            .with_context(|| format!("after {back} bytes"))?;
        if count == 0 {
            return Ok(back);
        }
        // Words are whole; what was read need not begin with one.
        let within = (back % WORD as u64) as usize;
        fill(
            &mut expected[..(within + count).next_multiple_of(WORD)],
            back - within as u64,
        );
        let (came, was_sent) = (&block[..count], &expected[within..within + count]);
        if came != was_sent {
            let same = came.iter().zip(was_sent).take_while(|(a, b)| a == b);
            bail!(
                "byte {} is not the one that was sent",
                back + same.count() as u64
            );
        }
        back += count as u64;
        if told.elapsed() >= Duration::from_secs(1) {
            println!("{back}");
            told = Instant::now();
        }
    }
}

const WORD: usize = 8;

/// The bytes from `place` on, the beginning of a word: each word says where it belongs.
fn fill(block: &mut [u8], place: u64) {
    let first = place / WORD as u64;
    for (number, word) in (first..).zip(block.chunks_exact_mut(WORD)) {
        word.copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    }
}
