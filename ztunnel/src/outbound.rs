//! A connection leaves a pod.
//!
//! 1. accepted by the pod's listener, original destination known   (`pod`)
//! 2. decide                                                        (`route::decide`, pure)
//! 3. open: a tunnel, a joined pod, or plain TCP                     (`tunnel`, `local::open`, `plain`)
//! 4. copy until both directions have ended                         (`hbone`)
//! 5. report, whatever happened                                     (`Report` writes itself on drop)
//!
//! Everything that can be refused is refused before the first byte moves, with a reset: an end of stream would look
//! to the app like an empty answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hbone::{Authority, BothWays, Connect, Destination, Identity, OpenError, Splicing, TcpPair};
use mesh::{Snapshot, Workload};
use tokio::net::TcpStream;

use crate::admit::Denied;
use crate::arrival::Misdirected;
use crate::carry::{Broken, Unknown, ended, known, refuse};
use crate::connections::{Carrier, Counting, Protocol};
use crate::headers;
use crate::inbound::Unreachable;
use crate::local;
use crate::lookup::{LookupError, lookup};
use crate::netns::{From, unmapped};
use crate::node::Node;
use crate::pod::Pod;
use crate::report::{Failure, Report, Whereabouts};
use crate::route::{self, Decision, OWN_PORTS, Place, Plain, Question, Refused, Tunnel};
use crate::traffic::{Ends, Flag, Reporter};

/// Carries one captured connection of `pod` to where `original_dst` leads, and reports it.
pub fn serve(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    original_dst: SocketAddr,
) -> impl Future<Output = ()> + Send + use<> {
    // Boxed, and what it is given with it: opening a connection takes kilobytes, and is over before its long life begins.
    let opening = Box::pin(begin(node.clone(), pod.clone(), tcp, peer, original_dst));
    async move {
        let (mut report, opened) = opening.await;
        let carried = match opened {
            Ok(Opened::Tunnel(copying)) => ended(copying.await),
            Ok(Opened::Pair(copying)) => ended(copying.await),
            Ok(Opened::Joined(joined)) => Box::pin(joined.carry()).await,
            Err(why) => Err(*why),
        };
        match carried {
            Ok(()) => report.completed(),
            Err(why) => report.failed(&why),
        }
    }
}

async fn begin(
    node: Arc<Node>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    original: SocketAddr,
) -> (Report, Result<Opened, Box<Failed>>) {
    let mut report = Report::new(&node, &pod, Reporter::Source, peer, original);
    let opened = open(&node, &pod, tcp, peer, original, &mut report).await;
    (report, opened.map_err(Box::new))
}

/// Why a connection that left a pod did not get through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("connection failed: {0}")]
    Connect(io::Error),
    #[error("connection timed out: no answer from {0} in {CONNECT_TIMEOUT:?}")]
    NoAnswer(SocketAddr),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error(transparent)]
    App(#[from] Unreachable),
    #[error("pod {0} of this node is going away")]
    Gone(Arc<str>),
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl Failure for Failed {
    fn flag(&self) -> Flag {
        match self {
            Self::Denied(why) => why.flag(),
            Self::Open(why) => flag_of(why),
            Self::Broken(_) => Flag::None,
            _ => Flag::Connect,
        }
    }
}

/// As long as Istio waits; an app behind a dead address learns of it in less time than its own patience.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection through which bytes can flow.
pub(crate) enum Opened {
    Tunnel(Box<BothWays<TcpStream, Counting>>),
    Pair(Box<Splicing<Counting>>),
    Joined(Box<local::Joined>),
}

async fn open(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    original: SocketAddr,
    report: &mut Report,
) -> Result<Opened, Failed> {
    if is_addressed_to_us(&tcp, original) {
        return refuse(tcp, Refused::SelfCall);
    }
    let identity = match known(pod).await {
        Ok(known) => &known.identity,
        Err(why) => return refuse(tcp, why),
    };
    let snapshot = Arc::clone(&node.mesh.load());
    let Some(source) = pod.workload(&snapshot) else {
        return refuse(tcp, Unknown);
    };
    report.between(Ends {
        source: Some(source.clone()),
        source_identity: Some(identity.clone()),
        ..Ends::default()
    });
    let decision = match decide(node, &snapshot, &source, original) {
        Ok(decision) => decision,
        Err(why) => return refuse(tcp, why),
    };
    drop(snapshot);
    let leaving = Leaving {
        node,
        pod,
        identity,
        source,
        peer,
        original,
    };
    match decision {
        Decision::Tunnel(found) => tunnel(&leaving, tcp, found, report).await,
        Decision::Local(found) => local::open(&leaving, tcp, found, report).await,
        Decision::Plain(found) => plain(&leaving, tcp, found, report).await,
    }
}

/// Nobody redirected this connection here: an app called our listener by its own address, on whichever of the pod's
/// addresses, also one that the control plane does not know. Carried, it would come straight back to us, for ever.
fn is_addressed_to_us(tcp: &TcpStream, original: SocketAddr) -> bool {
    OWN_PORTS.contains(&original.port())
        && tcp
            .local_addr()
            .is_ok_and(|local| unmapped(local) == original)
}

/// A connection on its way out: whose it is, and what its sockets say.
pub(crate) struct Leaving<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) identity: &'a Identity,
    pub(crate) source: Arc<Workload>,
    pub(crate) peer: SocketAddr,
    pub(crate) original: SocketAddr,
}

impl Leaving<'_> {
    /// An address of this pod that can speak to `to`: the one the app used, else another of the right family.
    pub(crate) fn own_address(&self, to: SocketAddr) -> Option<IpAddr> {
        let used = self.peer.ip();
        if used.is_ipv4() == to.is_ipv4() {
            return Some(used);
        }
        self.source
            .addresses
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == to.is_ipv4())
    }

    async fn resolve(&self, place: &Place) -> Result<SocketAddr, LookupError> {
        match place {
            Place::Address(address) => Ok(*address),
            Place::Name(name, port) => {
                self.node.traffic.asked(&self.source, self.identity, name);
                lookup(name, *port, self.original.is_ipv4()).await
            }
        }
    }
}

fn decide(
    node: &Node,
    snapshot: &Snapshot,
    source: &Workload,
    original: SocketAddr,
) -> Result<Decision, Refused> {
    let joinable = |workload: &Workload| {
        !node.config.force_tunnel && node.pods.of_workload(&workload.uid).is_some()
    };
    route::decide(&Question {
        snapshot,
        source,
        destination: original,
        joinable: &joinable,
        draw: headers::random(),
    })
}

async fn tunnel(
    leaving: &Leaving<'_>,
    tcp: TcpStream,
    found: Tunnel,
    report: &mut Report,
) -> Result<Opened, Failed> {
    let Leaving {
        node,
        pod,
        identity,
        source,
        peer,
        original,
    } = leaving;
    let forwarded = headers::forwarded(
        *peer,
        found.service.as_deref().map(|service| &*service.hostname),
    );
    let live = report.ends(Whereabouts {
        ends: Ends {
            source: Some(source.clone()),
            source_identity: Some((*identity).clone()),
            destination_identity: route::identity(&found.next).ok(),
            destination: Some(found.next),
            service: found.service,
            secured: true,
        },
        said: None,
        protocol: Protocol::Hbone,
        hop: found.address,
        tunnelled: Some(Authority::Ip(found.authority)),
        original: *original,
        actual: found.address,
        joined: None,
    });
    let own = leaving.own_address(found.address);
    let destination = Destination {
        address: found.address,
        source_ip: own.unwrap_or(peer.ip()),
        source: (*identity).clone(),
        expected: found.expected,
    };
    let connect = Connect {
        authority: Authority::Ip(found.authority),
        forwarded: Some(forwarded),
        baggage: Some(headers::baggage(source)).filter(|baggage| !baggage.is_empty()),
        traceparent: Some(headers::traceparent()),
        x_forwarded_network: None,
        source: None,
    };
    let from = own.map_or(From::Any, From::Own);
    let opened = node
        .workers
        .pool()
        .open_for(
            &tcp,
            &destination,
            |to| pod.netns.connect(from, to),
            connect,
        )
        .await;
    match opened {
        Ok(tunnel) => {
            if let Ok(freezer) = tunnel.freezer() {
                live.carried_by(Carrier::Tunnel(freezer, tunnel.stream()));
            }
            let copying = hbone::both_ways(tcp, tunnel, live.counting());
            Ok(Opened::Tunnel(Box::new(copying)))
        }
        Err(why) => refuse(tcp, why),
    }
}

async fn plain(
    leaving: &Leaving<'_>,
    tcp: TcpStream,
    found: Plain,
    report: &mut Report,
) -> Result<Opened, Failed> {
    let Leaving {
        pod,
        identity,
        source,
        original,
        ..
    } = leaving;
    let to = match leaving.resolve(&found.to).await {
        Ok(to) => to,
        Err(why) => return refuse(tcp, why),
    };
    let live = report.ends(Whereabouts {
        ends: Ends {
            source: Some(source.clone()),
            source_identity: Some((*identity).clone()),
            destination: found.workload,
            destination_identity: None,
            service: found.service,
            secured: false,
        },
        said: None,
        protocol: Protocol::Tcp,
        hop: to,
        tunnelled: None,
        original: *original,
        actual: to,
        joined: None,
    });
    match connect(
        pod,
        leaving.own_address(to).map_or(From::Any, From::Own),
        to,
    )
    .await
    {
        Ok(up) => {
            let pair = TcpPair::new(tcp, up);
            live.carried_by(Carrier::Pair(pair.freezer()));
            Ok(Opened::Pair(Box::new(pair.both_ways(live.counting()))))
        }
        Err(why) => refuse(tcp, why),
    }
}

/// A TCP connection inside the pod's namespace, from the pod's own address where the families agree.
pub(crate) async fn connect(pod: &Pod, from: From, to: SocketAddr) -> Result<TcpStream, Failed> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, pod.netns.connect(from, to)).await;
    connected
        .map_err(|_| Failed::NoAnswer(to))?
        .map_err(Failed::Connect)
}

fn flag_of(why: &OpenError) -> Flag {
    match why {
        OpenError::DialTimeout { .. } => Flag::NetworkPolicy,
        OpenError::HandshakeTimeout(_) | OpenError::Tls(_) => Flag::TlsFailure,
        OpenError::Http2(_) => Flag::H2HandshakeFailure,
        OpenError::IdentityMismatch(_) => Flag::IdentityError,
        // 401: the destination's policies denied it.
        OpenError::Refused(401) => Flag::Deny,
        OpenError::Certificate(_)
        | OpenError::Dial { .. }
        | OpenError::Refused(_)
        | OpenError::Reset(_)
        | OpenError::ConnectionLost(_)
        | OpenError::AnswerTimeout(_)
        | OpenError::Malformed(_) => Flag::Connect,
    }
}
