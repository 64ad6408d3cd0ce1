//! Relays queries to the upstream resolvers, byte for byte, from inside a pod's namespace: the
//! resolver sees the pod, and the pod's own network policies apply to it.
//!
//! Each query gets a socket of its own: a fresh random port, and nobody but the server that was
//! asked may answer. A silent server costs its share of the time limit, then the next is asked;
//! the one that answered last is asked first.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::netns::{From, Netns};

/// The resolvers that know all names that are not the mesh's.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    last_good: AtomicUsize,
}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// `resolv.conf` names no server.
    #[error("no upstream resolver is configured")]
    NoServers,
    /// All were silent.
    #[error("no upstream resolver answered within {}s", LIMIT.as_secs())]
    Silent,
    /// The last one tried could not even be asked.
    #[error("upstream resolver: {0}")]
    Io(#[from] io::Error),
}

impl Upstream {
    /// In the order of preference at the start.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            last_good: AtomicUsize::new(0),
        }
    }

    /// Relays over UDP; `size` is the largest answer the asker takes, in bytes.
    pub async fn udp(&self, netns: &Netns, query: &[u8], size: u16) -> Result<Vec<u8>, RelayError> {
        self.ask(|server| ask_udp(netns, server, query, size)).await
    }

    /// Relays over TCP; query and answer without their length prefix.
    pub async fn tcp(&self, netns: &Netns, query: &[u8]) -> Result<Vec<u8>, RelayError> {
        self.ask(|server| ask_tcp(netns, server, query)).await
    }

    async fn ask<F>(&self, one: impl Fn(SocketAddr) -> F) -> Result<Vec<u8>, RelayError>
    where
        F: Future<Output = io::Result<Vec<u8>>>,
    {
        let count = self.servers.len();
        if count == 0 {
            return Err(RelayError::NoServers);
        }
        let deadline = Instant::now() + LIMIT;
        let first = self.last_good.load(Ordering::Relaxed);
        let mut outcome = Err(RelayError::Silent);
        // Two rounds: a lost datagram must not be the end of a query.
        for attempt in 0..count * 2 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let index = (first + attempt) % count;
            match timeout(SHARE.min(left), one(self.servers[index])).await {
                Ok(Ok(answer)) => {
                    self.last_good.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => outcome = Err(RelayError::Io(error)),
                Err(_) => outcome = Err(RelayError::Silent),
            }
        }
        outcome
    }
}

async fn ask_udp(
    netns: &Netns,
    server: SocketAddr,
    query: &[u8],
    size: u16,
) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = netns.udp(any)?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; usize::from(size)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if is_answer(query, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(netns: &Netns, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = netns.connect(From::Any, server).await?;
    stream.write_all(&framed(query)?).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if is_answer(query, &answer) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// A message behind its length, as TCP carries it.
pub(crate) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}

/// Same id, and the response bit set: the rest is the asker's to judge.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= HEADER
        && query.len() >= HEADER
        && answer[..2] == query[..2]
        && answer[2] & 0x80 != 0
}

/// Length of a DNS header.
pub(crate) const HEADER: usize = 12;
/// Applications ask again after 5 s by themselves (`resolv.conf(5)`): be done before.
const LIMIT: Duration = Duration::from_millis(4500);
/// For one server before the next is tried: enough for a recursion across the internet.
const SHARE: Duration = Duration::from_millis(1500);
