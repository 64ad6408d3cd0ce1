//! Datagrams of pods that opted in (label `ambit.io/udp`; docs/udp.md): the mesh carries their UDP as it carries TCP.
//!
//! ```text
//!  app ──▶ rules: TPROXY ──▶ door 15001 ──▶ flow ──▶ decide ──▶ CONNECT-UDP in a tunnel ──▶ the other end's 15008
//!                                                      └──────▶ as it is, where nobody takes it in a tunnel
//!  15008 ──▶ admit ──▶ a socket with the client's address ──▶ app, and its answers back
//!  plain ──▶ rules: TPROXY ──▶ door 15006 ──▶ admit, without an identity ──▶ the same; its answers go as they are
//! ```
//!
//! A flow is all that goes between one address and port and another. It is decided, admitted and reported like a connection,
//! and ends when nothing has moved for a while. What it cannot take at once waits in a short queue ([`carry::Queue`]); what
//! comes when that is full is dropped and counted, never held up: an app of UDP knows loss, and has no use for what is late.
//!
//! | part | where |
//! |---|---|
//! | the doors of a pod, its flows, and who takes the next datagram | here |
//! | sockets: who a datagram was for, one from somebody else's address | [`socket`] |
//! | a flow leaves | [`leave`] |
//! | how it goes where a connection would go in a tunnel | [`passage`] |
//! | one arrives, in a tunnel or as it is | [`arrive`] |
//! | both ways between a socket and a tunnel | [`carry`] |
//! | an app is told that nobody listens | [`unreachable`] |

mod arrive;
mod carry;
mod leave;
mod metrics;
mod passage;
mod socket;
mod unreachable;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use hbone::TunnelError;
use hbone::datagrams::{NoWay, TooLarge};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::sleep;

pub(crate) use self::arrive::{Asked, arrive};
use self::carry::Queue;
pub use self::metrics::UdpMetrics;
use self::metrics::{Lost, Way};
pub(crate) use self::passage::Passage;
use self::socket::{Datagram, receive};
use crate::admit::Denied;
use crate::arrival::Misdirected;
use crate::bounds::{Full, Share};
use crate::carry::{Unknown, flag_of_tunnel};
use crate::config::ports;
use crate::hint::Hint;
use crate::lookup::LookupError;
use crate::netns::is_no_ipv6;
use crate::node::Node;
use crate::on_demand::NotTold;
use crate::outbound;
use crate::pod::Pod;
use crate::report::Failure;
use crate::traffic::Flag;

/// Why a flow is not carried, or not any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// As it is said of connections.
    #[error(transparent)]
    Connecting(Box<outbound::Failed>),
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("UDP to {0} would have to pass a waypoint or gateway, which carries none")]
    Front(SocketAddr),
    #[error("workload {0} carries no UDP")]
    NotCarried(Arc<str>),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("a socket for UDP in the pod: {0}")]
    Socket(io::Error),
    #[error("the client gave up before it was answered")]
    Abandoned,
    #[error("the tunnel of the flow broke: {0}")]
    Tunnel(#[from] TunnelError),
    #[error("the peer sent what is no UDP: {0}")]
    Malformed(#[from] TooLarge),
}

impl Failure for Failed {
    fn flag(&self) -> Flag {
        match self {
            Self::Connecting(why) => why.flag(),
            Self::Denied(why) => why.flag(),
            Self::Misdirected(why) => why.flag(),
            Self::Full(why) => why.flag(),
            Self::Unknown(_) | Self::Front(_) | Self::NotCarried(_) => Flag::Connect,
            Self::Lookup(_) | Self::Socket(_) => Flag::Connect,
            Self::Tunnel(why) => flag_of_tunnel(why),
            Self::Abandoned | Self::Malformed(_) => Flag::None,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Connecting(why) => return why.hint(),
            Self::Denied(why) => return why.hint(),
            Self::Misdirected(why) => return why.hint(),
            Self::Full(why) => return why.hint(),
            Self::Unknown(_) => Hint::NotTold,
            Self::Front(_) | Self::NotCarried(_) => Hint::NoDatagrams,
            Self::Lookup(_) => Hint::NameUnknown,
            Self::Socket(_) => Hint::SourceAddress,
            Self::Abandoned => Hint::GaveUp,
            Self::Tunnel(TunnelError::Disbelieved(why)) => Hint::of_tls(why),
            Self::Tunnel(_) | Self::Malformed(_) => return None,
        })
    }

    fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::Connecting(why) => why.policy(),
            Self::Denied(why) => why.policy(),
            _ => None,
        }
    }
}

/// Whether the mesh carries the UDP of this pod, as it was last told.
pub(crate) fn is_carried(node: &Node, pod: &Pod) -> bool {
    let workload = pod.workload(&node.mesh.load());
    workload.is_some_and(|workload| workload.udp)
}

/// Opens the doors of a pod while it is one whose UDP is carried, until it leaves.
pub(crate) async fn serve(node: Arc<Node>, pod: Arc<Pod>) {
    let accepting = pod.drain.accepting().clone();
    let doors = async {
        pod.wait_known().await;
        let mut changed = node.mesh.policies_changed();
        loop {
            while !is_carried(&node, &pod) {
                if changed.changed().await.is_err() {
                    return; // the writer is gone, and with it all change
                }
            }
            let open = match Doors::open(&pod) {
                Ok(open) => open,
                Err(error) => {
                    tracing::error!(pod = %pod.name, namespace = %pod.namespace, %error, "the pod's UDP cannot be taken, and is lost");
                    sleep(AGAIN).await;
                    continue;
                }
            };
            tokio::select! {
                () = open.serve(&node, &pod) => {}
                () = async {
                    while is_carried(&node, &pod) && changed.changed().await.is_ok() {}
                } => {}
            }
        }
    };
    // New flows are the successor's at once; those that are here go on until they are idle, or cut.
    accepting.run_until_cancelled(doors).await;
}

/// Sockets that take what the pod's packet rules send to them.
struct Doors(Vec<(Door, UdpSocket)>);

/// Which way a datagram was going.
#[derive(Debug, Clone, Copy)]
enum Door {
    Outbound,
    Plain,
}

impl Doors {
    fn open(pod: &Pod) -> io::Result<Self> {
        let mut open = Vec::new();
        for (door, port) in [
            (Door::Outbound, ports::OUTBOUND),
            (Door::Plain, ports::INBOUND_PLAIN),
        ] {
            // Where only the rules can send to, whatever the app binds.
            for ip in [
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ] {
                match pod.netns.udp_captured(SocketAddr::new(ip, port)) {
                    Ok(socket) => open.push((door, socket)),
                    Err(error) if ip.is_ipv6() && is_no_ipv6(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Self(open))
    }

    /// Never ends.
    async fn serve(&self, node: &Arc<Node>, pod: &Arc<Pod>) {
        let flows = [Flows::new(node, pod), Flows::new(node, pod)];
        let each = self
            .0
            .iter()
            .map(|(door, socket)| take(*door, socket, &flows[*door as usize]));
        join_all(each).await;
    }
}

async fn take(door: Door, socket: &UdpSocket, flows: &Arc<Flows>) {
    loop {
        match receive(socket).await {
            Ok(Some(datagram)) => flows.take(door, datagram),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(pod = %flows.pod.name, %error, "a datagram could not be taken");
                sleep(PAUSE).await;
            }
        }
    }
}

/// From where and to where.
type Between = (SocketAddr, SocketAddr);

/// The flows of a pod that came in by one kind of door.
struct Flows {
    node: Arc<Node>,
    pod: Arc<Pod>,
    open: Mutex<HashMap<Between, Arc<Queue>>>,
}

/// One of them, and what waits in its queue; forgotten when it is dropped.
struct Flow {
    flows: Arc<Flows>,
    between: Between,
    queue: Arc<Queue>,
    waiting: mpsc::Receiver<Bytes>,
    _room: Share,
}

impl Flows {
    fn new(node: &Arc<Node>, pod: &Arc<Pod>) -> Arc<Self> {
        Arc::new(Self {
            node: node.clone(),
            pod: pod.clone(),
            open: Mutex::default(),
        })
    }

    fn metrics(&self) -> &UdpMetrics {
        &self.node.udp
    }

    /// Gives a datagram to its flow, which may be a new one.
    fn take(self: &Arc<Self>, door: Door, datagram: Datagram) {
        let Datagram { from, to, payload } = datagram;
        let known = self.lock().get(&(from, to)).cloned();
        let queue = match known {
            Some(queue) => queue,
            None => match self.begin(door, (from, to)) {
                Some(queue) => queue,
                None => return self.metrics().lost(Lost::Flows),
            },
        };
        if !queue.push(payload) {
            self.metrics().lost(Lost::Queue);
        }
    }

    /// None when there are as many as there may be.
    fn begin(self: &Arc<Self>, door: Door, between: Between) -> Option<Arc<Queue>> {
        let room = self.node.bounds.connection(&self.pod.part, None).ok()?;
        let (queue, waiting) = Queue::new(self.pod.part.datagrams.clone());
        let mut open = self.lock();
        if open.len() >= self.node.config.udp_flows {
            return None;
        }
        open.insert(between, queue.clone());
        drop(open);
        let flow = Flow {
            flows: self.clone(),
            between,
            queue: queue.clone(),
            waiting,
            _room: room,
        };
        let cut = self.pod.drain.now().clone();
        self.pod.drain.spawn(Box::pin(async move {
            let whole = async {
                match door {
                    Door::Outbound => leave::serve(flow).await,
                    Door::Plain => arrive::serve_plain(flow).await,
                }
            };
            cut.run_until_cancelled(whole).await;
        }));
        Some(queue)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Between, Arc<Queue>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    /// It is not carried: what comes for a while is dropped, so that not each datagram is asked for and reported anew.
    async fn turned_away(mut self) {
        self.flows.metrics().flow(Way::Refused);
        let flow = async {
            loop {
                self.queue.pop(&mut self.waiting).await;
                self.flows.metrics().lost(Lost::Refused);
            }
        };
        let _ = tokio::time::timeout(TURNED_AWAY, flow).await;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.flows.lock().remove(&self.between);
    }
}

impl From<NotTold> for Failed {
    fn from(why: NotTold) -> Self {
        outbound::Failed::from(why).into()
    }
}

impl From<outbound::Failed> for Failed {
    fn from(why: outbound::Failed) -> Self {
        Self::Connecting(Box::new(why))
    }
}

impl From<NoWay> for Failed {
    fn from(why: NoWay) -> Self {
        match why {
            NoWay::Unsupported => Self::NotCarried("at the other end".into()),
            NoWay::Open(why) => outbound::Failed::from(why).into(),
        }
    }
}

/// In the mark of datagrams to an app whose answers need not be brought back to us by that mark's rule: they are caught as all
/// that it sends, or go as they are. Above those bits that say that a datagram is ours.
const PASSING: u32 = 0x1000;
/// Until a door that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// After an error of a door.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a refusal holds: an app that goes on sending is asked about, and reported, so often.
const TURNED_AWAY: Duration = Duration::from_secs(5);
