//! What the lab's tests share: one lab at a time with its logs kept on failure, servers and clients in pods.
#![allow(dead_code)] // each test program uses its share

pub(crate) mod calls;
pub(crate) mod crowd;
pub(crate) mod dns;
pub(crate) mod left;
pub(crate) mod users;

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, Weak},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{AccessLog, AccessRecord, Builder, Lab, Pod, wait};

/// For what should take milliseconds, on a machine busy with debug builds. Only a failure takes so long.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Runs `test` in a lab of its own. Labs do not disturb each other, but two cores carry only one well.
///
/// `LAB_ENGINES=own,h2 cargo test -p lab` does so with the one on node 0 and the other on node 1, and
/// `LAB_KEEPER=1 cargo test -p lab` with a keeper before each ztunnel.
pub(crate) fn in_lab(builder: Builder, test: impl FnOnce(&Lab) -> Result<()>) {
    let _turn = turn();
    let asked = std::env::var("LAB_ENGINES").unwrap_or_default();
    let builder = with_engines(builder, asked.split(',').filter(|name| !name.is_empty()));
    let builder = match std::env::var_os("LAB_KEEPER") {
        Some(_) => builder.keeper(true),
        None => builder,
    };
    let lab = builder.start().unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = test(&lab) {
        // The panic keeps the logs.
        panic!("{error:?}\nlogs: {}", lab.dir().display());
    }
    lab.stop().unwrap_or_else(|error| panic!("{error:#}"));
}

/// What carries the tunnels of each node, beginning with node 0.
pub(crate) fn with_engines<'a>(
    builder: Builder,
    engines: impl IntoIterator<Item = &'a str>,
) -> Builder {
    let on = |builder: Builder, (node, name): (usize, &str)| {
        builder.ztunnel_env_on(node, "AMBIT_ENGINE", name)
    };
    engines.into_iter().enumerate().fold(builder, on)
}

/// A lock between all test threads and all test programs of this machine.
pub(crate) fn turn() -> File {
    let lock = File::create("/run/ambit-lab-tests.lock").expect("tests of the lab run as root");
    lock.lock().expect("a lock file");
    lock
}

/// A server inside a pod, in this process. When dropped it ends as a killed program's would: its sockets close.
pub(crate) struct Server {
    listener: Arc<TcpListener>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    open: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Server {
    pub(crate) fn start(
        pod: &Pod,
        port: u16,
        serve: impl Fn(&TcpStream) + Send + Sync + 'static,
    ) -> Result<Self> {
        Ok(Self::over(pod.listen(port)?, serve))
    }

    /// Gives back every byte it gets, and the end when it gets that.
    pub(crate) fn echo(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod, port, echo)
    }

    pub(crate) fn over(
        listener: TcpListener,
        serve: impl Fn(&TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let (listener, serve) = (Arc::new(listener), Arc::new(serve));
        let server = Self {
            listener: listener.clone(),
            peers: Arc::default(),
            open: Arc::default(),
        };
        let (peers, open) = (server.peers.clone(), server.open.clone());
        thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                let (stream, serve) = (Arc::new(stream), serve.clone());
                peers
                    .lock()
                    .unwrap()
                    .push(SocketAddr::new(peer.ip().to_canonical(), peer.port()));
                open.lock().unwrap().push(Arc::downgrade(&stream));
                thread::spawn(move || serve(&stream));
            }
        });
        server
    }

    /// One connection after the other on one thread; `serve` may keep them.
    pub(crate) fn over_serial(
        listener: TcpListener,
        serve: impl Fn(TcpStream) + Send + 'static,
    ) -> Self {
        let listener = Arc::new(listener);
        let server = Self {
            listener: listener.clone(),
            peers: Arc::default(),
            open: Arc::default(),
        };
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                serve(stream);
            }
        });
        server
    }

    /// From where it was connected to, oldest first.
    pub(crate) fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The accept wakes, fails, and its thread ends.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        for stream in self
            .open
            .lock()
            .unwrap()
            .drain(..)
            .filter_map(|stream| stream.upgrade())
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

pub(crate) fn echo(mut stream: &TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Sends `text` and expects it back.
pub(crate) fn round_trip(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).context("sending")?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).context("receiving")?;
    ensure!(
        back == text.as_bytes(),
        "other bytes came back: {:?}",
        String::from_utf8_lossy(&back)
    );
    Ok(())
}

/// A connection of `client` that has carried something there and back.
pub(crate) fn talk(client: &Pod, to: SocketAddr, text: &str) -> Result<TcpStream> {
    let mut stream = client.connect(to)?;
    round_trip(&mut stream, text).with_context(|| format!("{} → {to}", client.name()))?;
    Ok(stream)
}

/// [`talk`], until it works. There is time for another call after one that nobody answered.
pub(crate) fn talk_soon(client: &Pod, to: SocketAddr) -> Result<()> {
    let what = format!("{} to reach {to}", client.name());
    wait::until(&what, SOON * 2, || {
        Ok(match talk(client, to, "again") {
            Ok(_) => wait::Probe::Ready(()),
            Err(error) => wait::Probe::NotYet(format!("{error:#}")),
        })
    })
}

/// Expects that not one byte comes back: the connection is refused, reset or closed.
pub(crate) fn refused(client: &Pod, to: SocketAddr) -> Result<()> {
    match talk(client, to, "anyone?") {
        Ok(_) => anyhow::bail!(
            "{} reached {to}, which should have been refused",
            client.name()
        ),
        // A time-out is silence, and silence is no refusal.
        Err(error) => ensure!(
            !timed_out(&error),
            "{} got no answer from {to}: {error:#}",
            client.name()
        ),
    }
    Ok(())
}

/// Calls until a call is refused and `log` says so as `fits` wants it. News reach those who are on the way one after the other,
/// and of a call that meets them something else may be said, once.
pub(crate) fn refused_until(
    client: &Pod,
    to: SocketAddr,
    log: &AccessLog,
    what: &str,
    fits: impl Fn(&AccessRecord) -> bool,
) -> Result<AccessRecord> {
    wait::until(what, SOON * 2, || {
        let called = refused(client, to);
        let records = log.records();
        let found = records.iter().find(|record| fits(record)).cloned();
        Ok(match (called, found) {
            (Ok(()), Some(found)) => wait::Probe::Ready(found),
            (called, _) => wait::Probe::NotYet(format!("{called:?}: {records:#?}")),
        })
    })
}

fn timed_out(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.into_iter()
        .any(|io| matches!(io.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

/// Waits for the end of a stream, cleanly or by reset; bytes on the way are thrown away.
pub(crate) fn ends(mut stream: TcpStream, within: Duration) -> Result<()> {
    stream.set_read_timeout(Some(within))?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                anyhow::bail!("the connection was still open after {within:?}")
            }
            Err(_) => return Ok(()),
        }
    }
}

/// Two meshed pods on two nodes with an echo server on port 8080 of the first.
pub(crate) struct Pair {
    pub(crate) server: Pod,
    pub(crate) client: Pod,
    pub(crate) echo: Server,
}

impl Pair {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        Self::between(lab, ("client", 1), ("web", 0))
    }

    /// [`Pair::start`] with other names, or the other way round.
    pub(crate) fn between(lab: &Lab, client: (&str, usize), server: (&str, usize)) -> Result<Self> {
        lab.namespace("shop").ambient()?;
        let start = |(name, node): (&str, usize)| {
            let pod = lab.pod(&format!("shop/{name}")).node(node);
            pod.service_account(name).start()
        };
        let (server, client) = (start(server)?, start(client)?);
        let echo = Server::echo(&server, 8080)?;
        Ok(Self {
            server,
            client,
            echo,
        })
    }

    pub(crate) fn at(&self) -> SocketAddr {
        self.server.at(8080)
    }
}

/// Runs `test` with two pairs whose connections cross: from node 1 to node 0, and back. The nodes have different
/// engines, so each is shown at the opening and at the accepting end.
pub(crate) fn crossing(builder: Builder, test: impl FnOnce(&Lab, [Pair; 2]) -> Result<()>) {
    in_lab(with_engines(builder, ["own", "h2"]), |lab| {
        let there = Pair::start(lab)?;
        let back = Pair::between(lab, ("shopper", 0), ("store", 1))?;
        test(lab, [there, back])
    });
}

/// The logs of all nodes from now on.
pub(crate) fn logs_from_now(lab: &Lab) -> Result<Vec<AccessLog>> {
    lab.nodes()
        .iter()
        .map(|node| Ok(node.access_log()?.from_now()))
        .collect()
}

/// What either end says of a connection between two workloads.
pub(crate) fn between<'a>(from: &'a str, to: &'a str) -> impl Fn(&AccessRecord) -> bool + 'a {
    move |record| record.field("src.workload") == from && record.field("dst.workload") == to
}
