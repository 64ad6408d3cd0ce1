//! Connections in great numbers: one after the other, all at a time, or full of what nobody reads.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use lab::Pod;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{SOON, Server, ends, round_trip};

/// A server for crowds: it answers the first byte of each connection and then holds it, with one thread for all.
pub(crate) struct Holder {
    pub(crate) at: SocketAddr,
    held: Arc<Mutex<Vec<TcpStream>>>,
    _server: Server,
}

impl Holder {
    pub(crate) fn start(pod: &Pod, port: u16) -> Result<Self> {
        // Both ends of a crowd are in this process; what is a habit from the time of select(2) is no limit.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let held = Arc::<Mutex<Vec<TcpStream>>>::default();
        let keep = held.clone();
        let server = Server::over_serial(pod.listen(port)?, move |mut stream| {
            // A client that goes again at once is none of ours.
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            // Whoever has its answer is held: nobody looks in between.
            let mut held = keep.lock().unwrap();
            if stream.write_all(&byte).is_ok() {
                held.push(stream);
            }
        });
        Ok(Self {
            at: pod.at(port),
            held,
            _server: server,
        })
    }

    /// So many connections of `client`'s, each answered, all open.
    pub(crate) fn crowd(&self, client: &Pod, count: usize) -> Result<Vec<TcpStream>> {
        let one = |number| -> Result<TcpStream> {
            let mut stream = TcpStream::connect(self.at)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.set_write_timeout(Some(SOON))?;
            round_trip(&mut stream, "x").with_context(|| format!("number {number} of {count}"))?;
            Ok(stream)
        };
        client.netns().within(|| (0..count).map(one).collect())?
    }

    /// Waits until each connection that it holds has ended at this end too; says how many there were.
    pub(crate) fn let_go(&self) -> Result<usize> {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        let count = held.len();
        held.into_iter().try_for_each(|stream| ends(stream, SOON))?;
        Ok(count)
    }
}

/// Opens, uses and closes connections, eight at a time.
pub(crate) fn many(client: &Pod, to: SocketAddr, connections: usize) -> Result<()> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                scope.spawn(move || {
                    let mine = connections / 8 + usize::from(caller < connections % 8);
                    client
                        .netns()
                        .within(|| (0..mine).try_for_each(|_| once(to)))?
                })
            })
            .collect();
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().unwrap())
    })
}

pub(crate) fn once(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    round_trip(&mut stream, "short and sweet")
}

/// Writes until nothing more is taken for half a second; says how many bytes were.
pub(crate) fn fill(stream: &mut TcpStream) -> Result<usize> {
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let block = [0x55; 64 * 1024];
    let mut written = 0;
    loop {
        match stream.write(&block) {
            Ok(n) => written += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(written);
            }
            Err(error) => return Err(error).context("a stalled stream must stay open"),
        }
        if written > 1 << 30 {
            return Ok(written);
        }
    }
}
