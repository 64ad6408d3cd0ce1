//! Defects that were found in Istio's ztunnel by running it (F1 to F8), each a test that ours passes with either engine.
//! That each can fail is shown by the program it was found in:
//!
//! `PEER_ZTUNNEL=path cargo test -p lab --test defects -- --ignored`, which expects that the peer fails all of them.
//!
//! | | what happens there | here |
//! |---|---|---|
//! | F1 | a few streams that nobody reads freeze all others between the same two pods | [`unread`] |
//! | F2 | a round trip beside a bulk transfer of the same pair waits behind megabytes | [`beside`] |
//! | F3 | of hundreds of connections at once most wait a second for their second SYN | [`burst`] |
//! | F4 | short connections that the client closes use up the server pod's ports | [`ports`] |
//! | F5 | when nobody reads its log, the node's data plane stops, and SIGTERM has no effect | [`unheard`] |
//! | F6 | a service whose address is a range is not routed | [`range`] |
//! | F7 | streams that nobody reads fill megabytes each | [`kept`], with our own engine; no test for the peer, see there |
//! | F8 | an upgrade cuts open connections | `handover.rs` |

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Builder, Lab, Netns, Pod, wait};
use nix::sys::signal::Signal;
use support::{
    Pair, SOON, Server, crossing,
    crowd::{Holder, fill, many},
    in_lab, round_trip, talk, with_engines,
};

/// What is expected of a ztunnel that carries a pair's connections.
type Expected = fn(&Lab, &Pair) -> Result<()>;

fn ours(expected: Expected) {
    crossing(talkative(), |lab, pairs| {
        pairs.iter().try_for_each(|pair| expected(lab, pair))
    });
}

/// With our own engine on both nodes.
fn our_own(expected: Expected) {
    in_lab(with_engines(talkative(), ["own", "own"]), |lab| {
        expected(lab, &Pair::start(lab)?)
    });
}

/// A log of more than usual, so that it is soon more than any buffer holds.
fn talkative() -> Builder {
    Lab::builder().ztunnel_env("RUST_LOG", "debug")
}

/// Two of the peer's, which fail.
#[allow(clippy::print_stdout)] // how it failed is what one wants to see
fn the_peers(name: &str, expected: Expected) {
    let peer = std::env::var("PEER_ZTUNNEL").expect("PEER_ZTUNNEL names the peer's binary");
    let builder = talkative()
        .ztunnel_binary(0, &peer)
        .ztunnel_binary(1, &peer);
    in_lab(builder, |lab| {
        let pair = Pair::start(lab)?;
        support::talk_soon(&pair.client, pair.at())?;
        let Err(error) = expected(lab, &pair) else {
            anyhow::bail!("the peer does not have {name}: can the test fail?");
        };
        println!("{name}, the peer: {error:#}");
        Ok(())
    });
}

macro_rules! defects {
    ($($name:literal $ours:ident $peers:ident $expected:ident $run:ident,)+) => {$(
        #[test]
        fn $ours() {
            $run($expected);
        }

        #[test]
        #[ignore = "needs another implementation's ztunnel: PEER_ZTUNNEL=path"]
        fn $peers() {
            the_peers($name, $expected);
        }
    )+};
}

defects! {
    "F1" f1_streams_that_nobody_reads_hold_up_nobody_else the_peer_has_f1 unread ours,
    "F2" f2_a_round_trip_does_not_wait_behind_a_bulk the_peer_has_f2 beside ours,
    "F3" f3_five_hundred_connections_at_once_are_all_taken the_peer_has_f3 burst ours,
    "F4" f4_short_connections_do_not_use_up_the_servers_ports the_peer_has_f4 ports ours,
    "F5" f5_a_log_that_nobody_reads_stops_nothing the_peer_has_f5 unheard ours,
    "F6" f6_a_service_may_have_a_range_of_addresses the_peer_has_f6 range ours,
    "F2" f2_a_round_trip_waits_for_hardly_more_than_the_link the_peer_has_f2_more_so closely our_own,
}

/// Eight streams of a pair stand full; the pair goes on.
fn unread(_: &Lab, pair: &Pair) -> Result<()> {
    let mut open = talk(&pair.client, pair.at(), "before")?;
    let (_deaf, _full) = full(&pair.client, &pair.server, 8)?;
    round_trip(&mut open, "one that was open")?;
    for n in 0..20 {
        talk(
            &pair.client,
            pair.at(),
            &format!("new one {n} ").repeat(1_000),
        )?;
    }
    Ok(())
}

/// Connections to a server that reads nothing, as full as they get.
fn full(client: &Pod, server: &Pod, count: usize) -> Result<(Holder, Vec<(TcpStream, usize)>)> {
    let holder = Holder::start(server, 9000)?;
    let streams = holder.crowd(client, count)?;
    let full: Result<Vec<_>> = thread::scope(|scope| {
        let all: Vec<_> = streams
            .into_iter()
            .map(|mut stream| scope.spawn(move || fill(&mut stream).map(|taken| (stream, taken))))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    Ok((holder, full?))
}

/// Of the slow link, in megabits a second: so little that the link is what both wait for, also on a slow machine.
const SLOW: u32 = 20;

/// Bytes of a bulk that are let by before questions count: it needs a while to reach its speed.
const SETTLING: u64 = 3 << 20;

/// Bytes of it beside which questions count.
const JUDGED: u64 = 6 << 20;

/// Who waits for a processor has measured something else: the best of some attempts counts.
const ATTEMPTS: usize = 4;

/// On a slow link a round trip waits for what waits there, and in the same tunnel for what of the bulk is already on its way,
/// which is not much: as much again at most. The more the link holds, the more lies before it where nobody cares.
fn beside(lab: &Lab, pair: &Pair) -> Result<()> {
    behind_at_most(lab, pair, 512 << 10, 1 << 20)
}

/// The same more closely, for our own engine knows what the path takes (`hbone/src/own/pace.rs`): a few records, and some more for
/// a machine that is busy with something else.
fn closely(lab: &Lab, pair: &Pair) -> Result<()> {
    behind_at_most(lab, pair, 128 << 10, 256 << 10)
}

/// Told by bytes, not by time: what has come over a link with room for `queue` between a question and its answer. That is what
/// lay before the question, however fast this machine is.
#[allow(clippy::print_stdout)] // the figures are worth more than the verdict
fn behind_at_most(lab: &Lab, pair: &Pair, queue: u32, most: u64) -> Result<()> {
    let _sink = Server::start(&pair.server, 9001, |mut stream| {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(1..) = stream.read(&mut buffer) {}
    })?;
    lab.slow_link(0, SLOW, queue)?;
    let mut least = u64::MAX;
    for _ in 0..ATTEMPTS {
        least = least.min(bytes_before_a_question(lab, pair)?);
        println!("a round trip beside a bulk waits for {least} bytes at best");
        if least <= most {
            break;
        }
    }
    lab.mend_link(0)?;
    ensure!(
        least <= most,
        "a round trip beside a bulk waited for {least} bytes, of which {queue} may be the link's"
    );
    Ok(())
}

/// Sends as much as possible from the pair's client to port 9001 of its server, and asks for as long as it takes. What of the bulk went by
/// while nobody waited counts for nothing; of the rest, half went by with questions that waited for no more than this.
fn bytes_before_a_question(lab: &Lab, pair: &Pair) -> Result<u64> {
    let node = lab.node(pair.server.node()).netns();
    let mut asking = talk(&pair.client, pair.at(), "before")?;
    asking.set_nodelay(true)?;
    let mut bulk = pair.client.connect(pair.server.at(9001))?;
    let (stop, begun) = (AtomicBool::new(false), arrived(node)?);
    let mut waited = thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            while !stop.load(SeqCst) {
                bulk.write_all(&[0x55; 64 << 10]).context("the bulk")?;
            }
            Ok(())
        });
        let mut waited = Vec::new();
        let asked = loop {
            let before = match arrived(node) {
                Ok(so_far) if so_far - begun >= SETTLING + JUDGED && !waited.is_empty() => {
                    break Ok(());
                }
                // Its thread says why.
                Ok(_) if sending.is_finished() => break Ok(()),
                Ok(so_far) => so_far,
                Err(error) => break Err(error),
            };
            let question = "a question of sixty-four bytes, as of any chatty protocol......";
            match round_trip(&mut asking, question).and_then(|()| arrived(node)) {
                Ok(after) if before - begun >= SETTLING => waited.push(after - before),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        stop.store(true, SeqCst);
        sending.join().unwrap()?;
        asked.map(|()| waited)
    })?;
    waited.sort_unstable();
    let (all, mut so_far) = (waited.iter().sum::<u64>(), 0);
    let half = waited.into_iter().find(|bytes| {
        so_far += bytes;
        so_far * 2 >= all
    });
    half.context("nothing came back")
}

/// Bytes that have come over a node's link so far, as the kernel counts them.
fn arrived(node: &Netns) -> Result<u64> {
    let table = node.within(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let mut rows = table.lines().filter_map(|row| row.split_once(':'));
    let row = rows.find(|(name, _)| name.trim() == "eth0");
    let bytes = row.and_then(|(_, counts)| counts.split_ascii_whitespace().next());
    Ok(bytes.context("a node without a link")?.parse()?)
}

/// For a moment the ztunnel does not get to run, as on a busy node; the kernel takes five hundred connections for it.
fn burst(lab: &Lab, pair: &Pair) -> Result<()> {
    let holder = Holder::start(&pair.server, 9000)?;
    drop(holder.crowd(&pair.client, 1)?);
    let ztunnel = lab.node(pair.client.node()).ztunnel()?.process()?;
    ztunnel.signal(Signal::SIGSTOP)?;
    let asleep = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", ztunnel.pid()));
        stat.is_ok_and(|stat| stat.contains(") T "))
    };
    let knocking = wait::until_true("it to stand still", SOON, asleep).and_then(|()| {
        // The second SYN comes after a second.
        let within = Duration::from_millis(900);
        let connect = |n| {
            let stream = TcpStream::connect_timeout(&holder.at, within);
            stream.with_context(|| format!("connection {n} found no room"))
        };
        pair.client
            .netns()
            .within(|| (0..500).map(connect).collect::<Result<Vec<_>>>())?
    });
    ztunnel.signal(Signal::SIGCONT)?;
    let mut taken = knocking?;
    // They reach the server in an order of their own, and it hears one after the other.
    for stream in &mut taken {
        stream.write_all(b"x")?;
        stream.set_read_timeout(Some(SOON))?;
    }
    for (n, stream) in taken.iter_mut().enumerate() {
        stream
            .read_exact(&mut [0])
            .with_context(|| format!("connection {n} was not answered"))?;
    }
    Ok(())
}

/// The server's pod has 256 ports for connections that begin there, and 600 come and go within a minute.
fn ports(_: &Lab, pair: &Pair) -> Result<()> {
    let netns = pair.server.netns();
    netns.sysctl("net/ipv4/ip_local_port_range", "40000 40255")?;
    let before = pair.echo.peers().len();
    let called = many(&pair.client, pair.at(), 600);
    netns.sysctl("net/ipv4/ip_local_port_range", "32768 60999")?;
    called?;
    let (peers, client) = (pair.echo.peers(), pair.client.ip());
    ensure!(
        peers[before..].iter().all(|peer| peer.ip() == client),
        "the app was called under another address than its client's"
    );
    Ok(())
}

/// Until lines are lost, or for as many connections as would fill anything.
fn unheard(lab: &Lab, pair: &Pair) -> Result<()> {
    let node = lab.node(pair.client.node());
    let ztunnel = node.ztunnel()?;
    ztunnel.terminate(SOON)?;
    ztunnel.start_unheard()?;
    support::talk_soon(&pair.client, pair.at())?;
    for _ in 0..120 {
        many(&pair.client, pair.at(), 100)?;
        if node.metrics()?.sum("ambit_log_lines_dropped_total", &[]) > 0.0 {
            break;
        }
    }
    let status = ztunnel.terminate(SOON)?;
    ensure!(status.success(), "{status}");
    ztunnel.start()
}

/// Any address of the range leads to what is behind the service.
fn range(lab: &Lab, pair: &Pair) -> Result<()> {
    let (name, app) = (format!("range-{}", pair.server.name()), pair.server.name());
    let host = format!("{name}.shop.example");
    let third = 100 + pair.server.node();
    lab.apply_yaml(
        &name,
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
             hosts: [{host}]\n  addresses: [10.{third}.0.0/16]\n  ports:\n  - number: 80\n    name: tcp\n    protocol: TCP\n    \
             targetPort: 8080\n  location: MESH_INTERNAL\n  resolution: STATIC\n  workloadSelector:\n    labels:\n      app: {app}\n"
        ),
    )?;
    lab.until_all_dumps(&host, |dump| dump["services"].to_string().contains(&host))?;
    for last in [1, 77, 254] {
        let to = SocketAddr::from(([10, third as u8, 3, last], 80));
        let mut stream = pair
            .client
            .connect_within(to, SOON)?
            .with_context(|| format!("{to} of the range"))?;
        round_trip(&mut stream, "to whoever is behind it")?;
    }
    lab.delete_yaml(&name)
}

/// Streams that nobody reads.
const UNREAD: usize = 100;

/// What the mesh may keep of each, in bytes: a window of 512 KiB, and what the sockets of the apps and before them take.
const KEPT: usize = 1280 << 10;

/// What the mesh has taken from an app and the other app has not read is the node's memory, in sockets or elsewhere. It is
/// a small window and what a few sockets hold, not the 4 MiB a stream that `h2` announces. The peer takes less, because
/// there all of them share 16 MiB: that is F1. What most of F7 is, 4 MiB in each first app's own socket, the kernel grants
/// on a loopback with large segments, with any proxy behind it; it is not counted here. Measured side by side: of 513 MB
/// that apps have written ours has taken 94, the peer 47 of 463: by this measure it has no defect.
#[allow(clippy::print_stdout)] // the figures are worth more than the verdict
fn kept(lab: &Lab, pair: &Pair) -> Result<()> {
    let resident = || -> Result<usize> {
        let of = |node| -> Result<usize> {
            let pid = lab.node(node).ztunnel()?.process()?.pid();
            let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
            let pages = text.split(' ').nth(1).context("resident pages")?;
            Ok(pages.parse::<usize>()? * 4096)
        };
        Ok(of(0)? + of(1)?)
    };
    let before = resident()?;
    let (_deaf, streams) = full(&pair.client, &pair.server, UNREAD)?;
    let grown = resident()?.saturating_sub(before);
    let taken: usize = streams.iter().map(|(_, taken)| taken).sum();
    let kept = taken - waiting(&pair.client)?;
    println!(
        "{UNREAD} streams that nobody reads: {taken} bytes written, {kept} taken by the mesh; it is {grown} larger"
    );
    ensure!(
        kept < UNREAD * KEPT && grown < UNREAD * KEPT,
        "{kept} bytes were taken of streams that nobody reads; the ztunnels grew by {grown}"
    );
    // And the pair goes on: together they are more than a connection's first window.
    talk(&pair.client, pair.at(), "beside all that").map(drop)
}

#[test]
fn f7_streams_that_nobody_reads_keep_little() {
    our_own(kept);
}

/// Bytes that wait in the pod's own sockets to port 9000 and have not been acknowledged.
fn waiting(pod: &Pod) -> Result<usize> {
    let tables = pod.netns().within(|| {
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    })?;
    let queued = |row: &str| -> Option<usize> {
        let mut columns = row.split_ascii_whitespace().skip(2);
        let (remote, queues) = (columns.next()?, columns.nth(1)?);
        let queued = remote
            .ends_with(":2328")
            .then_some(queues.split_once(':')?.0)?;
        usize::from_str_radix(queued, 16).ok()
    };
    let rows = tables.iter().flatten().flat_map(|table| table.lines());
    Ok(rows.filter_map(queued).sum())
}
