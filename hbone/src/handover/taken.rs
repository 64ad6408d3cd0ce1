//! The successor's half: what came from another process is read, checked, and gone on with.

use std::{fmt, io, ops::Deref, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::net::TcpStream;

use super::{
    Freezer, Kind, ThawError,
    berth::Berth,
    wire::{Reader, Wiped},
};
use crate::{
    client::Driver,
    copy::{self, Counters, Ended, HalfEnd, TcpPair},
    engine::{
        self, Occupancy,
        half::{Receiving, Sending},
    },
    frames::StreamId,
    gauge::Gauge,
    identity::Identity,
    limits::Limits,
    own::{self, App, Role, Thawing, ThawingCopy, ThawingFlow},
    pool::{Destination, Pool},
    server::Connection,
    socket::Socket,
    splice,
    tls::Trust,
    tunnel::Tunnel,
};

/// Something that came from another process: read and checked, and nothing done with it. Dropped, its
/// descriptors are closed and its keys overwritten, and nobody hears of it.
pub struct Taken {
    descriptors: Vec<OwnedFd>,
    what: Whole,
}

enum Whole {
    Connection(Box<Thawing>),
    Pair(splice::Thawing),
}

/// A tunnel of a connection that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenTunnel {
    /// [`Tunnel::stream`] at the elder, and here.
    pub stream: u32,
    /// Bytes from the app into the tunnel so far.
    pub sent: u64,
    /// Bytes from the tunnel to the app so far.
    pub received: u64,
}

impl Taken {
    /// Reads what [`super::Frozen::bytes`] and [`super::Frozen::descriptors`] gave. The bytes are overwritten.
    ///
    /// # Errors
    /// When they are not what a process of our version writes, or other descriptors came with them.
    pub fn read(bytes: Vec<u8>, descriptors: Vec<OwnedFd>) -> Result<Self, ThawError> {
        let bytes = Wiped::new(bytes);
        let (kind, mut reader) = Reader::new(bytes.as_ref())?;
        let from = &mut reader;
        let what = match kind {
            Kind::Accepted => Whole::Connection(Box::new(Thawing::read(Role::Server, from)?)),
            Kind::Dialled => Whole::Connection(Box::new(Thawing::read(Role::Client, from)?)),
            Kind::Pair => Whole::Pair(splice::Thawing::read(from)?),
        };
        reader.end()?;
        let expected = match &what {
            Whole::Connection(connection) => connection.sockets(),
            Whole::Pair(_) => 2,
        };
        if descriptors.len() != expected {
            let got = descriptors.len();
            return Err(ThawError::Descriptors { expected, got });
        }
        Ok(Self { descriptors, what })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match &self.what {
            Whole::Connection(connection) if connection.role == Role::Client => Kind::Dialled,
            Whole::Connection(_) => Kind::Accepted,
            Whole::Pair(_) => Kind::Pair,
        }
    }

    /// Who is at the other end of the connection: proven to the elder. A pair has nobody.
    pub fn peer(&self) -> Option<&Identity> {
        match &self.what {
            Whole::Connection(connection) => Some(&connection.session.peer),
            Whole::Pair(_) => None,
        }
    }

    /// For whom the elder opened it, and where to. Only [`Kind::Dialled`] has one.
    pub fn destination(&self) -> Option<&Destination> {
        match &self.what {
            Whole::Connection(connection) => Some(&connection.berth.as_ref()?.destination),
            Whole::Pair(_) => None,
        }
    }

    /// The tunnels in it, in the order of [`super::Frozen::streams`].
    pub fn tunnels(&self) -> Vec<TakenTunnel> {
        let Whole::Connection(connection) = &self.what else {
            return Vec::new();
        };
        let flows = connection.flows.iter();
        flows.filter_map(|flow| flow.taken()).collect()
    }

    /// Goes on with it, in this runtime. Nothing moves before what it gives is run.
    ///
    /// # Errors
    /// When the runtime cannot watch one of the sockets. All of them are closed then.
    pub fn thaw(self, limits: &Limits) -> io::Result<Thawed> {
        let mut sockets = Vec::with_capacity(self.descriptors.len());
        for descriptor in self.descriptors {
            let socket = std::net::TcpStream::from(descriptor);
            // It is already, unless who wrote the state was no proxy of ours.
            socket.set_nonblocking(true)?;
            sockets.push(TcpStream::from_std(socket)?);
        }
        let mut sockets = sockets.into_iter();
        // `read` has counted them.
        let mut next = || sockets.next().ok_or(io::ErrorKind::NotConnected);
        match self.what {
            Whole::Pair(pair) => Ok(Thawed::Pair(pair.thaw(next()?, next()?))),
            Whole::Connection(connection) => {
                let io = next()?;
                let copies = connection.flows.iter();
                let copies = copies.filter_map(|flow| Some((flow.stream, flow.copy()?.clone())));
                let copies: Vec<_> = copies
                    .map(|(stream, copy)| Ok((next()?, stream, copy)))
                    .collect::<io::Result<_>>()?;
                Ok(thaw_connection(io, *connection, copies, limits))
            }
        }
    }
}

fn thaw_connection(
    io: TcpStream,
    connection: Thawing,
    copies: Vec<(TcpStream, StreamId, ThawingCopy)>,
    limits: &Limits,
) -> Thawed {
    let (role, grown) = (connection.role, connection.mux.grown());
    let peer = connection.session.peer.clone();
    let gauge = Gauge::new();
    let occupancy = Occupancy::thawed(peer, limits.reserve.clone(), grown);
    let shared = own::Shared::thawed(io, connection, gauge.clone());
    let resume = |(tcp, stream, copy)| Resumed::new(&shared, &occupancy, tcp, stream, copy);
    let tunnels = copies.into_iter().filter_map(resume).collect();
    let thawed = engine::Thawed {
        driver: own::Driver(shared.clone()),
        occupancy,
        gauge,
    };
    match role {
        Role::Server => Thawed::Accepted(Connection::thawed(thawed, limits), tunnels),
        Role::Client => {
            let dialled = Dialled {
                freezer: Freezer::of(&shared),
                thawed,
                pings: (limits.ping_every, limits.ping_answer),
                opener: own::Opener(shared),
            };
            Thawed::Dialled(dialled, tunnels)
        }
    }
}

/// What goes on, once it is run.
#[derive(Debug)]
pub enum Thawed {
    /// A connection that a peer opened: call [`Connection::next`], and run its tunnels.
    Accepted(Connection, Vec<Resumed>),
    /// A connection that we opened: let it join a pool or run it, and run its tunnels.
    Dialled(Dialled, Vec<Resumed>),
    /// A pair: [`TcpPair::both_ways`].
    Pair(TcpPair),
}

/// A connection that we opened, or rather the elder.
pub struct Dialled {
    thawed: engine::Thawed,
    opener: own::Opener,
    /// Every so often, and how long an answer may take.
    pings: (Duration, Duration),
    freezer: Freezer,
}

impl Dialled {
    /// Runs it to its end: it takes no new tunnels and ends with its last. Nobody says who was revoked.
    pub async fn run(self) {
        self.run_trusting(None).await;
    }

    async fn run_trusting(self, trust: Option<Trust>) {
        drop(self.opener);
        let pinger = self.thawed.pinger(self.pings.0, self.pings.1);
        let driver = Driver::thawed(self.thawed, pinger, NEVER_IDLE, trust);
        let ended = driver.run(|| {}).await;
        tracing::debug!(%ended, "connection ended");
    }

    /// From now on it is one of `pool`, which opens tunnels on it, and lets go of it when it is no longer used, the
    /// certificate that it was made with ends, or its source is closed. What is given back drives it to its
    /// end. One that comes from no pool takes no new tunnels in this one either.
    pub fn join(self, pool: &Pool) -> impl Future<Output = ()> + Send + use<> {
        let berth: Option<Berth> = self.opener.0.berth().cloned();
        let joined = match berth {
            Some(berth) => Ok(pool.adopt(&berth, self.opener, self.thawed)),
            None => Err((pool.trust(&self.thawed), self)),
        };
        async move {
            match joined {
                Ok(driving) => driving.await,
                Err((trust, alone)) => alone.run_trusting(Some(trust)).await,
            }
        }
    }

    /// To freeze it again.
    pub fn freezer(&self) -> Freezer {
        self.freezer.clone()
    }
}

/// For what ends with its last tunnel, and so is used until it ends.
const NEVER_IDLE: Duration = Duration::from_secs(300);

/// A tunnel and the app's socket that it is copied to. Dropped before that has ended, both are reset.
pub struct Resumed {
    copy: Option<Resuming>,
    stream: u32,
    moved: (u64, u64),
    peer: Identity,
    freezer: Freezer,
}

struct Resuming {
    tcp: TcpStream,
    tunnel: Tunnel,
    ends: (Option<HalfEnd>, Option<HalfEnd>),
    broken: Option<io::ErrorKind>,
}

impl Resumed {
    fn new(
        shared: &Arc<own::Shared>,
        occupancy: &Arc<Occupancy>,
        tcp: TcpStream,
        stream: StreamId,
        copy: ThawingCopy,
    ) -> Option<Self> {
        let (receiving, sending) = own::halves(shared, stream);
        // It is as new as its count of tunnels: there is a place.
        let lease = occupancy.lease(usize::MAX >> 1)?;
        let peer = lease.peer().clone();
        let (receiving, sending) = (Receiving::Own(receiving), Sending::Own(sending));
        let tunnel = Tunnel::thawed(receiving, sending, lease, copy.up.is_some());
        Some(Self {
            copy: Some(Resuming {
                tcp,
                tunnel,
                ends: (copy.up, copy.down),
                broken: copy.broken,
            }),
            stream: stream.0,
            moved: copy.moved,
            peer,
            freezer: Freezer::of(shared),
        })
    }

    /// Its number among the tunnels of the connection.
    pub fn stream(&self) -> u32 {
        self.stream
    }

    /// Who is at the other end of the connection.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// Bytes (sent, received) that had been moved when it was frozen: for [`Counters::of`].
    pub fn moved(&self) -> (u64, u64) {
        self.moved
    }

    /// To freeze the connection again.
    pub fn freezer(&self) -> Freezer {
        self.freezer.clone()
    }

    /// Goes on as [`crate::both_ways`] did.
    pub async fn both_ways<C>(mut self, counters: C) -> Ended
    where
        C: Deref<Target = Counters> + Unpin,
    {
        let Some(copy) = self.copy.take() else {
            return Ended::HANDED_OVER; // unreachable: `self` is used up by this
        };
        let app = App::thawed(copy.tcp, counters.received.clone(), copy.broken);
        copy::go_on(app, copy.tunnel, copy.ends, counters).await
    }
}

impl Drop for Resumed {
    fn drop(&mut self) {
        // The tunnel resets itself.
        if let Some(copy) = &self.copy {
            copy.tcp.abort();
        }
    }
}

impl ThawingFlow {
    fn taken(&self) -> Option<TakenTunnel> {
        let (sent, received) = self.copy()?.moved;
        Some(TakenTunnel {
            stream: self.stream.0,
            sent,
            received,
        })
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken")
            .field("kind", &self.kind())
            .field("tunnels", &self.tunnels())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialled({})", self.freezer.id)
    }
}

impl fmt::Debug for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumed")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}
