//! Relays queries to the upstream resolvers, byte for byte, from inside a pod's namespace: the
//! resolver sees the pod, and the pod's own network policies apply to it.
//!
//! Each query gets a socket of its own: a fresh random port, and nobody but the server that was
//! asked may answer, what was asked. A server that says nothing for its share of the time limit is not
//! given up, for it may be slow: the next is asked beside it. The one that answered last is asked first.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

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
        let mut limit = pin!(sleep(LIMIT));
        let first = self.last_good.load(Ordering::Relaxed);
        // Two rounds: a lost datagram must not be the end of a query.
        let mut turns = (0..count * 2).map(|turn| (first + turn) % count);
        let ask = |index: usize| {
            let asking = one(self.servers[index]);
            async move { (index, asking.await) }
        };
        let (mut asked, mut failed) = (FuturesUnordered::new(), None);
        loop {
            if let Some(index) = turns.next() {
                asked.push(ask(index));
            } else if asked.is_empty() {
                return Err(failed.map_or(RelayError::Silent, RelayError::Io));
            }
            tokio::select! {
                Some((index, answered)) = asked.next() => match answered {
                    Ok(answer) => {
                        self.last_good.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(error) => failed = Some(error),
                },
                () = sleep(SHARE) => {}
                () = &mut limit => return Err(RelayError::Silent),
            }
        }
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
    let largest = LARGEST_ANSWER.max(size.into());
    let mut answer = vec![0; largest + 1];
    loop {
        let length = socket.recv(&mut answer).await?;
        if is_answer(query, &answer[..length]) {
            answer.truncate(length.min(largest));
            if length > largest {
                answer[2] |= TRUNCATED;
            }
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

/// Same id, the response bit set, same question (RFC 5452, 9.1): the rest is the asker's to judge.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= HEADER
        && query.len() >= HEADER
        && answer[..2] == query[..2]
        && answer[2] & 0x80 != 0
        && repeats_question(query, answer)
}

/// Who has no answer may leave the question out; so may other operations than queries, each of which has its own rules.
fn repeats_question(query: &[u8], answer: &[u8]) -> bool {
    let is_query = query[2] & OPERATION == 0;
    let Some(asked) = question(query).filter(|_| is_query) else {
        return true;
    };
    if questions(answer) == 0 {
        return answer[3] & CODE != 0;
    }
    let Some(told) = question(answer).filter(|told| told.len() == asked.len()) else {
        return false;
    };
    // Names have no case; type and class are numbers.
    let (name, kind) = asked.split_at(asked.len() - KIND);
    let (told_name, told_kind) = told.split_at(told.len() - KIND);
    name.eq_ignore_ascii_case(told_name) && kind == told_kind
}

/// The question of a message that has one, as it lies there: name, type, class.
fn question(message: &[u8]) -> Option<&[u8]> {
    if questions(message) != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => return message.get(HEADER..=at + KIND),
            length @ 1..64 => at += usize::from(length) + 1,
            _ => return None, // the first name has nothing to point to
        }
    }
}

fn questions(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[4], message[5]])
}

/// Length of a DNS header.
pub(crate) const HEADER: usize = 12;
/// Length of type and class.
const KIND: usize = 4;
/// In the third byte of a header: the operation, and that the message was cut short.
const OPERATION: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
/// In the fourth: what became of the query.
const CODE: u8 = 0x0f;
/// Longer answers over UDP are cut, and say so: the asker comes back over TCP.
const LARGEST_ANSWER: usize = 4096;
/// Applications ask again after 5 s by themselves (`resolv.conf(5)`): be done before.
const LIMIT: Duration = Duration::from_millis(4500);
/// For one server alone before the next is asked too: enough for most recursions across the internet.
const SHARE: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this id, operation and code about `names`, type A.
    fn message(id: u16, bits: [u8; 2], names: &[&str]) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend(bits);
        message.extend([0, names.len() as u8, 0, 0, 0, 0, 0, 0]);
        for name in names {
            for label in name.split('.') {
                message.push(label.len() as u8);
                message.extend(label.bytes());
            }
            message.extend([0, 0, 1, 0, 1]);
        }
        message
    }

    #[test]
    fn an_answer_has_the_id_and_the_question_that_were_asked() {
        const ANSWER: [u8; 2] = [0x80, 0];
        const FAILED: [u8; 2] = [0x80, 5];
        let query = message(7, [1, 0], &["www.example.org"]);
        let about = |names: &[&str]| message(7, ANSWER, names);
        let mut other_type = about(&["www.example.org"]);
        let at = other_type.len() - 3;
        other_type[at] = 28;
        let mut pointing = about(&["www.example.org"]);
        pointing[HEADER] = 0xc0;
        for (answer, is) in [
            (about(&["www.example.org"]), true),
            (about(&["WWW.Example.org"]), true),
            (message(8, ANSWER, &["www.example.org"]), false),
            (query.clone(), false),
            (about(&["www.example.com"]), false),
            (about(&["www.example.org.evil"]), false),
            (about(&["www.example.org", "evil"]), false),
            (other_type, false),
            (pointing, false),
            (about(&["www.example.org"])[..HEADER + 4].to_vec(), false),
            // No question: a refusal may be so, an answer not.
            (message(7, FAILED, &[]), true),
            (message(7, ANSWER, &[]), false),
            (vec![0, 7, 0x80], false),
        ] {
            assert_eq!(is_answer(&query, &answer), is, "{answer:?}");
        }
        // What has not one question that can be read is known by its id; so are updates.
        let odd = message(7, [1, 0], &["a", "b"]);
        let update = message(7, [0x28, 0], &["example.org"]);
        for query in [odd, update] {
            assert!(is_answer(&query, &message(7, [query[2] | 0x80, 0], &[])));
        }
    }
}
