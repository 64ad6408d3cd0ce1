//! The load generator: one server, and clients that measure from inside a pod.
//!
//! A connection opens with one byte that says what the client wants of the server:
//! `e` echo, `s` sink (the server counts and answers the count), `d` download (the server
//! sends until it is told to stop by a close), `o` one byte there and back, after which the server
//! closes (so that it, with its one port, is left in TIME_WAIT, and not the client, which would run
//! out of ports and measure the search for a free one), `G` the beginning of an HTTP/1.1 `GET` (answered
//! with 1 KiB and kept alive). Every client prints one JSON line: what was done, how long it
//! took and, where single operations were timed, their percentiles.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

/// Bytes moved by one read or write of a bulk stream.
const CHUNK: usize = 128 * 1024;
/// Body of an HTTP answer, in bytes.
const BODY: usize = 1024;
/// How long one connection may take before the client calls it failed.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Work {
    /// Sends as fast as it can.
    Upload,
    /// Receives as fast as it can.
    Download,
    /// 64 bytes there and back, one outstanding per connection.
    RoundTrip,
    /// 64 bytes there and back on one connection, while the others upload as fast as they can.
    RoundTripInBulk,
    /// HTTP/1.1 keep-alive, one outstanding request per connection.
    Http,
    /// Connect, one byte there and back, the server closes.
    Connect,
    /// The same, each time over a new tunnel: the proxy's sockets, which are in this pod's namespace, are
    /// destroyed before.
    Tunnel,
    /// All connections at once, one byte there and back each, timed from the start of the burst.
    Burst,
    /// Opens connections, says so, and holds them idle for the time.
    Hold,
}

/// What a client measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Bytes for bulk work, operations otherwise.
    pub(crate) units: u64,
    /// Wall-clock seconds.
    pub(crate) seconds: f64,
    /// Operations that failed.
    pub(crate) failed: u64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p90: f64,
    /// Microseconds.
    pub(crate) p99: f64,
}

/// Serves every kind of work until it is killed.
pub(crate) async fn serve(bind: SocketAddr) -> Result<()> {
    let socket = if bind.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    let listener: TcpListener = socket.listen(4096)?;
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(async move {
            // A client that goes away in the middle is the end of its work, not an error here.
            let _ = answer(tcp).await;
        });
    }
}

async fn answer(mut tcp: TcpStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    match tcp.read_u8().await? {
        b'e' => echo(tcp).await,
        b's' => sink(tcp).await,
        b'o' => {
            let byte = tcp.read_u8().await?;
            tcp.write_u8(byte).await?;
            Ok(())
        }
        b'd' => {
            let chunk = vec![7u8; CHUNK];
            loop {
                tcp.write_all(&chunk).await?;
            }
        }
        b'G' => http(tcp).await,
        other => bail!("unknown work {other}"),
    }
}

async fn echo(mut tcp: TcpStream) -> Result<()> {
    let mut buffer = [0u8; 4096];
    loop {
        let n = tcp.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        tcp.write_all(&buffer[..n]).await?;
    }
}

async fn sink(mut tcp: TcpStream) -> Result<()> {
    let mut buffer = vec![0u8; CHUNK];
    let mut total = 0u64;
    loop {
        let n = tcp.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        total += n as u64;
    }
    tcp.write_u64(total).await?;
    Ok(())
}

async fn http(mut tcp: TcpStream) -> Result<()> {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut buffer = vec![0u8; 4096];
    let mut held = 1; // the G that brought us here
    buffer[0] = b'G';
    loop {
        let n = tcp.read(&mut buffer[held..]).await?;
        if n == 0 {
            return Ok(());
        }
        held += n;
        // The client sends one request and waits, so a request always ends the buffer.
        if buffer[..held].ends_with(b"\r\n\r\n") {
            tcp.write_all(answer.as_bytes()).await?;
            held = 0;
        } else if held == buffer.len() {
            bail!("request head over 4 KiB");
        }
    }
}

/// Does `work` against `to` over `connections` for `time`, and says what was measured.
pub(crate) async fn run(
    work: Work,
    to: SocketAddr,
    connections: usize,
    time: Duration,
) -> Result<Measured> {
    match work {
        Work::Upload => bulk(to, connections, time, true).await,
        Work::Download => bulk(to, connections, time, false).await,
        Work::RoundTrip => repeat(to, connections, time, round_trips).await,
        Work::RoundTripInBulk => in_bulk(to, connections, time).await,
        Work::Http => repeat(to, connections, time, requests).await,
        Work::Connect => repeat(to, connections, time, connects).await,
        Work::Tunnel => repeat(to, connections, time, tunnels).await,
        Work::Burst => burst(to, connections).await,
        Work::Hold => hold(to, connections, time).await,
    }
}

async fn bulk(to: SocketAddr, connections: usize, time: Duration, up: bool) -> Result<Measured> {
    let total = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut set = JoinSet::new();
    for _ in 0..connections {
        let total = total.clone();
        set.spawn(async move {
            let mut tcp = TcpStream::connect(to).await?;
            let mut buffer = vec![1u8; CHUNK];
            tcp.write_u8(if up { b's' } else { b'd' }).await?;
            let ends = Instant::now() + time;
            while Instant::now() < ends {
                let n = if up {
                    tcp.write_all(&buffer).await?;
                    buffer.len()
                } else {
                    tcp.read(&mut buffer).await?
                };
                if n == 0 {
                    bail!("closed by the server");
                }
                total.fetch_add(n as u64, Ordering::Relaxed);
            }
            if up {
                // What was written has arrived only when the server has counted it.
                tcp.shutdown().await?;
                tcp.read_u64()
                    .await
                    .context("the sink did not answer its count")?;
            }
            Ok(())
        });
    }
    let mut failed = 0;
    while let Some(done) = set.join_next().await {
        failed += u64::from(done?.is_err());
    }
    Ok(Measured {
        units: total.load(Ordering::Relaxed),
        seconds: started.elapsed().as_secs_f64(),
        failed,
        ..Measured::default()
    })
}

/// One client's loop: works until told to stop, noting the microseconds of each operation.
type Loop = fn(SocketAddr, Instant) -> BoxFuture<'static, (Vec<f32>, u64)>;

async fn repeat(
    to: SocketAddr,
    connections: usize,
    time: Duration,
    each: Loop,
) -> Result<Measured> {
    let started = Instant::now();
    let mut set = JoinSet::new();
    for _ in 0..connections {
        set.spawn(each(to, started + time));
    }
    let (mut took, mut failed) = (Vec::new(), 0);
    while let Some(done) = set.join_next().await {
        let (times, errors) = done?;
        took.extend(times);
        failed += errors;
    }
    Ok(summary(took, failed, started.elapsed()))
}

/// Of operations' microseconds.
pub(crate) fn summary(mut took: Vec<f32>, failed: u64, elapsed: Duration) -> Measured {
    took.sort_by(f32::total_cmp);
    let at = |share: f64| {
        let index = ((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1));
        took.get(index).copied().map_or(0.0, f64::from)
    };
    Measured {
        units: took.len() as u64,
        seconds: elapsed.as_secs_f64(),
        failed,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
    }
}

fn round_trips(to: SocketAddr, ends: Instant) -> BoxFuture<'static, (Vec<f32>, u64)> {
    Box::pin(async move {
        let mut took = Vec::new();
        let result: Result<()> = async {
            let mut tcp = TcpStream::connect(to).await?;
            tcp.set_nodelay(true)?;
            tcp.write_u8(b'e').await?;
            let mut message = [3u8; 64];
            while Instant::now() < ends {
                let began = Instant::now();
                tcp.write_all(&message).await?;
                tcp.read_exact(&mut message).await?;
                took.push(began.elapsed().as_secs_f32() * 1e6);
            }
            Ok(())
        }
        .await;
        (took, u64::from(result.is_err()))
    })
}

fn requests(to: SocketAddr, ends: Instant) -> BoxFuture<'static, (Vec<f32>, u64)> {
    Box::pin(async move {
        let mut took = Vec::new();
        let result: Result<()> = async {
            let mut tcp = TcpStream::connect(to).await?;
            tcp.set_nodelay(true)?;
            let request =
                b"GET /bench HTTP/1.1\r\nhost: server\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n").len();
            let mut answer = vec![0u8; head + BODY];
            while Instant::now() < ends {
                let began = Instant::now();
                tcp.write_all(request).await?;
                tcp.read_exact(&mut answer).await?;
                took.push(began.elapsed().as_secs_f32() * 1e6);
            }
            Ok(())
        }
        .await;
        (took, u64::from(result.is_err()))
    })
}

fn connects(to: SocketAddr, ends: Instant) -> BoxFuture<'static, (Vec<f32>, u64)> {
    Box::pin(async move {
        let (mut took, mut failed) = (Vec::new(), 0);
        while Instant::now() < ends {
            let began = Instant::now();
            match tokio::time::timeout(CONNECT_DEADLINE, one_connection(to)).await {
                Ok(Ok(())) => took.push(began.elapsed().as_secs_f32() * 1e6),
                _ => failed += 1,
            }
        }
        (took, failed)
    })
}

fn tunnels(to: SocketAddr, ends: Instant) -> BoxFuture<'static, (Vec<f32>, u64)> {
    Box::pin(async move {
        let (mut took, mut failed) = (Vec::new(), 0);
        while Instant::now() < ends {
            if destroy_tunnels().await.is_err() {
                failed += 1;
                break;
            }
            let began = Instant::now();
            match tokio::time::timeout(CONNECT_DEADLINE, one_connection(to)).await {
                Ok(Ok(())) => took.push(began.elapsed().as_secs_f32() * 1e6),
                _ => failed += 1,
            }
        }
        (took, failed)
    })
}

/// Neither proxy is asked, and both see a connection that broke; they have a moment to see it.
async fn destroy_tunnels() -> Result<()> {
    let mut ss = tokio::process::Command::new("ss");
    let ended = ss.args(["-K", "-t", "-n", "dport", "=", ":15008"]).output();
    let ended = ended.await.context("ss, of iproute2, cannot be run")?;
    anyhow::ensure!(ended.status.success(), "ss cannot destroy sockets");
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(())
}

async fn one_connection(to: SocketAddr) -> Result<()> {
    let mut tcp = TcpStream::connect(to).await?;
    tcp.write_all(b"ox").await?;
    tcp.read_u8().await?;
    let rest = tcp.read(&mut [0]).await?;
    anyhow::ensure!(rest == 0, "more than one byte came back");
    Ok(())
}

async fn in_bulk(to: SocketAddr, connections: usize, time: Duration) -> Result<Measured> {
    let others = connections.saturating_sub(1);
    let (trips, bulk) = tokio::join!(
        repeat(to, 1, time, round_trips),
        bulk(to, others, time, true)
    );
    let (trips, bulk) = (trips?, bulk?);
    anyhow::ensure!(others == 0 || bulk.units > 0, "nothing was uploaded");
    Ok(Measured {
        failed: trips.failed + bulk.failed,
        ..trips
    })
}

async fn burst(to: SocketAddr, connections: usize) -> Result<Measured> {
    let started = Instant::now();
    let mut set = JoinSet::new();
    for _ in 0..connections {
        set.spawn(async move {
            tokio::time::timeout(CONNECT_DEADLINE, one_connection(to)).await??;
            anyhow::Ok(started.elapsed().as_secs_f32() * 1e6)
        });
    }
    let (mut took, mut failed) = (Vec::new(), 0);
    while let Some(done) = set.join_next().await {
        match done? {
            Ok(micros) => took.push(micros),
            Err(_) => failed += 1,
        }
    }
    Ok(summary(took, failed, started.elapsed()))
}

async fn hold(to: SocketAddr, connections: usize, time: Duration) -> Result<Measured> {
    let started = Instant::now();
    let mut held = Vec::with_capacity(connections);
    let mut failed = 0;
    for _ in 0..connections {
        let opened: Result<TcpStream> = async {
            let mut tcp = TcpStream::connect(to).await?;
            tcp.write_all(b"ex").await?;
            tcp.read_u8().await?;
            Ok(tcp)
        }
        .await;
        match opened {
            Ok(tcp) => held.push(tcp),
            Err(_) => failed += 1,
        }
    }
    let measured = Measured {
        units: held.len() as u64,
        seconds: started.elapsed().as_secs_f64(),
        failed,
        ..Measured::default()
    };
    #[allow(clippy::print_stdout)] // the line is what the caller waits for
    {
        println!("{}", serde_json::to_string(&measured)?);
    }
    tokio::time::sleep(time).await;
    drop(held);
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server() -> SocketAddr {
        // Bound and not listened at: who serves shares the port, and nobody else is given it before.
        let reserved = TcpSocket::new_v4().unwrap();
        reserved.set_reuseaddr(true).unwrap();
        reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = reserved.local_addr().unwrap();
        tokio::spawn(serve(address));
        let begun = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody serves");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        address
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_kind_of_work_counts_what_it_did() {
        let to = server().await;
        for work in [
            Work::Upload,
            Work::Download,
            Work::RoundTrip,
            Work::RoundTripInBulk,
            Work::Http,
            Work::Connect,
            Work::Burst,
        ] {
            let mut time = Duration::from_millis(100);
            let measured = loop {
                // On a busy machine nobody may have a turn in so short a time.
                match run(work, to, 3, time).await {
                    Ok(measured) if measured.units > 0 => break measured,
                    other => assert!(time.as_secs() < 5, "{work:?} did nothing: {other:?}"),
                }
                time *= 4;
            };
            assert_eq!(measured.failed, 0, "{work:?} failed");
        }
    }

    #[test]
    fn percentiles_come_from_the_sorted_times() {
        let measured = summary(
            (1..=100).rev().map(|n| n as f32).collect(),
            2,
            Duration::from_secs(1),
        );
        assert_eq!((measured.units, measured.failed), (100, 2));
        assert_eq!(
            (measured.p50, measured.p90, measured.p99),
            (51.0, 91.0, 100.0)
        );
    }
}
