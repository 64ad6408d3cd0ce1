//! The client before the waypoint: HTTP/1.1 in tunnels that it opens itself, as many to a connection as is wanted.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hbone::{
    Authority as To, Certificates, Connect, Destination, Identity, Pool, PoolConfig, TunnelIo,
};
use lab::Pod;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::load::{self, Measured};

/// An answer: head and body.
const LONGEST: usize = 16 << 10;
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to ask, through whom.
#[derive(Debug, Clone)]
pub(crate) struct Hop {
    /// The HBONE port of whoever is next.
    pub(crate) address: SocketAddr,
    /// Who that must be.
    pub(crate) expected: Identity,
    /// What the CONNECT is for.
    pub(crate) to: SocketAddr,
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) pod: Pod,
    pub(crate) identity: Identity,
    pub(crate) certificates: Arc<Certificates>,
}

impl Asker {
    /// `streams` conversations, spread over as many connections as there are `tunnels`.
    pub(crate) async fn talks(
        &self,
        hop: &Hop,
        tunnels: usize,
        streams: usize,
    ) -> Result<Vec<Talk>> {
        let config = || PoolConfig {
            streams,
            ..PoolConfig::default()
        };
        let new = || Pool::new(self.certificates.clone(), config());
        let pools: Vec<_> = std::iter::repeat_with(new).take(tunnels).collect();
        let mut talks = Vec::with_capacity(streams);
        for pool in pools.iter().cycle().take(streams) {
            talks.push(self.talk(pool, hop).await?);
        }
        Ok(talks)
    }

    /// One conversation, on a connection of its own.
    pub(crate) async fn alone(&self, hop: &Hop) -> Result<Talk> {
        let mut talks = self.talks(hop, 1, 1).await?;
        talks.pop().context("a conversation")
    }

    /// A tunnel, on a connection of its own, which lasts as long as its pool.
    pub(crate) async fn tunnel(&self, hop: &Hop) -> Result<(TunnelIo, Arc<Pool>)> {
        let pool = Pool::new(self.certificates.clone(), PoolConfig::default());
        Ok((self.opened(&pool, hop).await?, pool))
    }

    async fn talk(&self, pool: &Arc<Pool>, hop: &Hop) -> Result<Talk> {
        Ok(Talk {
            io: self.opened(pool, hop).await?,
            buffer: vec![0; LONGEST].into(),
            _pool: pool.clone(),
        })
    }

    async fn opened(&self, pool: &Arc<Pool>, hop: &Hop) -> Result<TunnelIo> {
        let destination = Destination {
            address: hop.address,
            source_ip: self.pod.ip(),
            source: self.identity.clone(),
            expected: vec![hop.expected.clone()],
        };
        let pod = self.pod.clone();
        let dial = move |to| dial(pod.clone(), to);
        let connect = Connect::to(To::Ip(hop.to));
        let tunnel = pool.open(&destination, dial, connect).await?;
        Ok(tunnel.into_io())
    }
}

async fn dial(pod: Pod, to: SocketAddr) -> io::Result<TcpStream> {
    let tcp = pod.connect(to).map_err(io::Error::other)?;
    tcp.set_nonblocking(true)?;
    tcp.set_nodelay(true)?;
    TcpStream::from_std(tcp)
}

/// Requests and answers, one after the other.
pub(crate) struct Talk {
    io: TunnelIo,
    buffer: Box<[u8]>,
    _pool: Arc<Pool>,
}

/// What came back, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    /// `x-edit`
    pub(crate) edit: Option<u64>,
}

impl Talk {
    pub(crate) async fn get(&mut self, path: &str) -> Result<Heard> {
        let asked = self.asked(path);
        let heard = tokio::time::timeout(PATIENCE, asked).await;
        heard.context("no answer in time")?
    }

    async fn asked(&mut self, path: &str) -> Result<Heard> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: server.bench\r\nuser-agent: bench\r\naccept: */*\r\n\r\n"
        );
        self.io.write_all(request.as_bytes()).await?;
        self.io.flush().await?;
        let (mut held, mut needed) = (0, None);
        loop {
            let n = self.io.read(&mut self.buffer[held..]).await?;
            ensure!(n > 0, "closed, or an answer over {LONGEST} bytes");
            held += n;
            if needed.is_none() {
                needed = head(&self.buffer[..held])?;
            }
            match needed {
                Some((whole, heard)) if held == whole => return Ok(heard),
                Some((whole, _)) => ensure!(held < whole, "more than one answer"),
                None => {}
            }
        }
    }
}

/// Head and body in bytes, once the head is whole.
fn head(bytes: &[u8]) -> Result<Option<(usize, Heard)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end])?;
    let (first, rest) = text.split_once("\r\n").unwrap_or((text, ""));
    let status = first.split(' ').nth(1).context("no status")?.parse()?;
    let (mut length, mut edit) = (None, None);
    for line in rest.split("\r\n") {
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = Some(value.trim().parse::<usize>()?);
            }
            Some(("x-edit", value)) => edit = value.trim().parse().ok(),
            _ => {}
        }
    }
    match length {
        Some(length) => Ok(Some((end + 4 + length, Heard { status, edit }))),
        None => bail!("an answer of no known length: {text}"),
    }
}

/// How requests are made.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    pub(crate) time: Duration,
    /// Requests a second over all conversations; without, each asks again as soon as it is answered.
    pub(crate) rate: Option<f64>,
    pub(crate) path: String,
}

/// All conversations at once. Those that failed are gone, and counted.
pub(crate) async fn run(talks: &mut Vec<Talk>, pace: &Pace) -> Result<Measured> {
    let (started, streams) = (Instant::now(), talks.len());
    let mut set = JoinSet::new();
    for (number, talk) in talks.drain(..).enumerate() {
        let beats = pace.rate.map(|rate| {
            let period = Duration::from_secs_f64(streams as f64 / rate);
            Beats {
                next: started + period.mul_f64(number as f64 / streams as f64),
                period,
            }
        });
        let (path, ends) = (pace.path.clone(), started + pace.time);
        set.spawn(one(talk, path, ends, beats));
    }
    let (mut took, mut failed) = (Vec::new(), 0);
    while let Some(done) = set.join_next().await {
        let (talk, times) = done?;
        took.extend(times);
        match talk {
            Ok(talk) => talks.push(talk),
            Err(_) => failed += 1,
        }
    }
    Ok(load::summary(took, failed, started.elapsed()))
}

/// When a request is due.
struct Beats {
    next: Instant,
    period: Duration,
}

impl Beats {
    /// Waits for it, and says from when on it is late: from when it was due, if the one before it took too long.
    async fn wait(&mut self) -> Instant {
        let due = self.next;
        self.next += self.period;
        if due <= Instant::now() {
            return due;
        }
        tokio::time::sleep_until(due.into()).await;
        Instant::now()
    }
}

async fn one(
    mut talk: Talk,
    path: String,
    ends: Instant,
    mut beats: Option<Beats>,
) -> (Result<Talk>, Vec<f32>) {
    let mut took = Vec::new();
    let mut begun = Instant::now();
    while begun < ends {
        if let Some(beats) = &mut beats {
            begun = beats.wait().await;
        }
        match talk.get(&path).await {
            Ok(Heard { status: 200, .. }) => took.push(begun.elapsed().as_secs_f32() * 1e6),
            Ok(heard) => return (Err(anyhow::anyhow!("{heard:?}")), took),
            Err(error) => return (Err(error), took),
        }
        begun = Instant::now();
    }
    (Ok(talk), took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx-edit: 7\r\n\r\nok";
        assert_eq!(head(&said[..20]).unwrap(), None);
        let heard = Heard {
            status: 200,
            edit: Some(7),
        };
        assert_eq!(head(said).unwrap(), Some((said.len(), heard)));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[tokio::test]
    async fn a_request_that_waited_for_another_is_late_from_when_it_was_due() {
        let due = Instant::now();
        let mut beats = Beats {
            next: due,
            period: Duration::from_millis(20),
        };
        assert_eq!(beats.wait().await, due);
        assert!(beats.wait().await >= due + Duration::from_millis(20));
    }
}
