//! Programs that attackers really use: floods of h2load, and slowhttptest's clients that never come to an end. While they last
//! others are served, and nothing of them is held.
//!
//! `H2LOAD=path SLOWHTTPTEST=path cargo test --workspace --test waypoint programs -- --ignored` (Debian: nghttp2-client,
//! slowhttptest).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Pod;

use super::{resident, unharmed};
use crate::app::One;
use crate::shop::{Shop, in_shop};

/// What it does, on which port, its words (the URL follows), and whether its requests are to be answered.
type Attack = (&'static str, u16, &'static [&'static str]);

#[rustfmt::skip]
const FLOODS: &[Attack] = &[
    ("h2load, many streams of many connections", 90, &["-n", "10000", "-c", "50", "-m", "100"]),
    ("h2load, one connection with all of its streams", 90, &["-n", "5000", "-c", "1", "-m", "1000"]),
    ("h2load, windows of one byte", 90, &["-n", "500", "-c", "10", "-m", "50", "-w", "1", "-W", "1"]),
    ("h2load, HTTP/1.1", 80, &["-n", "5000", "-c", "200", "--h1"]),
];

/// Each for so many seconds (`-l`), at two hundred connections.
#[rustfmt::skip]
const SLOW: &[Attack] = &[
    ("slowhttptest, heads without end", 80, &["-H", "-c", "200", "-r", "100", "-i", "2", "-l", "15", "-p", "3", "-u"]),
    ("slowhttptest, bodies without end", 80, &["-B", "-c", "200", "-r", "100", "-i", "2", "-l", "15", "-p", "3", "-s", "1048576", "-u"]),
    ("slowhttptest, ranges", 80, &["-R", "-c", "200", "-r", "100", "-l", "15", "-p", "3", "-u"]),
    ("slowhttptest, readers without haste", 80, &["-X", "-c", "200", "-r", "100", "-w", "1", "-y", "2", "-n", "1", "-z", "1", "-k", "3", "-l", "15", "-p", "3", "-u"]),
];

#[test]
#[ignore = "needs programs of attackers: H2LOAD=path SLOWHTTPTEST=path"]
fn known_programs_of_attackers_keep_nobody_else_out() {
    in_shop(|shop| {
        let other = shop.lab.pod("shop/other").node(1).start()?;
        shop.until("the other client", |shop| served(shop, &other).is_ok())?;
        let memory = resident(shop)?;
        for (variable, attacks) in [("H2LOAD", FLOODS), ("SLOWHTTPTEST", SLOW)] {
            let program = std::env::var(variable).context(variable)?;
            for (name, port, words) in attacks {
                let slowest = attack(shop, &other, &program, shop.at(*port), words);
                let slowest = slowest.with_context(|| (*name).to_owned())?;
                unharmed(shop, name, memory)?;
                eprintln!("{name}: others waited {slowest:?} at most");
            }
        }
        Ok(())
    });
}

/// How long the other client has waited at most while it lasted.
fn attack(
    shop: &Shop<'_>,
    other: &Pod,
    program: &str,
    at: SocketAddr,
    words: &[&str],
) -> Result<Duration> {
    let url = format!("http://{at}/");
    let all: Vec<&str> = [program]
        .into_iter()
        .chain(words.iter().copied())
        .chain([&*url])
        .collect();
    let command = shop.client.command(all)?.within(LONG);
    std::thread::scope(|scope| {
        let running = scope.spawn(move || command.run());
        let mut slowest = Duration::ZERO;
        while !running.is_finished() {
            let begun = Instant::now();
            served(shop, other).context("the other client")?;
            slowest = slowest.max(begun.elapsed());
            #[allow(clippy::disallowed_methods)] // a test's own thread
            std::thread::sleep(Duration::from_millis(100));
        }
        let ran = running.join().ok().context("the program")??;
        let said = ran.success()?;
        if let Some(line) = said.lines().find(|line| line.starts_with("requests:")) {
            ensure!(line.contains(" 0 failed, 0 errored, 0 timeout"), "{line}");
        }
        Ok(slowest)
    })
}

fn served(shop: &Shop<'_>, client: &Pod) -> Result<()> {
    shop.runtime.block_on(async {
        let mut one = One::to(client, shop.at(80)).await?;
        one.get("/").await?.is(200).map(drop)
    })
}

/// On a busy machine, of debug builds.
const LONG: Duration = Duration::from_secs(180);
