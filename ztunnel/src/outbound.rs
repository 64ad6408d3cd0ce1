//! A connection leaves a pod.
//!
//! 1. accepted by the pod's listener, original destination known   (`pod`)
//! 2. decide                                                        (`route::decide`, pure)
//! 3. reach: a tunnel, a joined pod, or plain TCP                    (`tunnel`, `local::reach`, `plain`)
//! 4. or, where that fails, another endpoint of the same service     (`again`, `retry`)
//! 5. copy until both directions have ended                         (`hbone`)
//! 6. report, whatever happened                                     (`Report` writes itself on drop)
//!
//! Everything that can be refused is refused before the first byte moves, with a reset: an end of stream would look
//! to the app like an empty answer.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hbone::{BothWays, Connect, First, OpenError, Splicing};
use tokio::net::TcpStream;

use crate::admit::Denied;
use crate::arrival::Misdirected;
use crate::bounds::Full;
use crate::carry::{Broken, Unknown, ended, flag_of_tls, known, refuse};
use crate::connections::{Counting, Live, Protocol};
use crate::hint::Hint;
use crate::inbound::Unreachable;
use crate::local;
use crate::lookup::LookupError;
use crate::netns::{From, unmapped};
use crate::node::Node;
use crate::on_demand::NotTold;
use crate::pod::Pod;
use crate::report::{Failure, Report, Whereabouts};
use crate::retry::SILENT;
use crate::route::{self, Decision, OWN_PORTS, Plain, Refused, Tunnel};
use crate::traffic::{Ends, Flag, Reporter};

mod again;
mod leaving;
mod reached;

pub(crate) use again::{Again, Try};
pub(crate) use leaving::Leaving;
pub(crate) use reached::{Reached, pass_on};

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
            Ok(Opened::Outside(copying, live)) => Box::pin(until_shut(copying, live)).await,
            Ok(Opened::Joined(joined)) => Box::pin(joined.carry()).await,
            Err(why) => Err(*why),
        };
        match carried {
            Ok(()) => report.completed(),
            Err(why) => report.failed(&why),
        }
    }
}

/// Copies to the end, or until its workload may not call who is unknown any more.
async fn until_shut(copying: Box<Splicing<Counting>>, live: Arc<Live>) -> Result<(), Failed> {
    tokio::select! {
        done = copying => ended(done),
        denied = live.denied() => Err(denied.into()),
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
    NotTold(#[from] NotTold),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("connection failed: {0}")]
    Connect(io::Error),
    #[error("connection timed out: no answer from {0} in {CONNECT_TIMEOUT:?}")]
    NoAnswer(SocketAddr),
    /// Left for another one.
    #[error("no answer in {SILENT:?}")]
    Silent,
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error(transparent)]
    App(#[from] Unreachable),
    /// The pod that is called, if it is of this node.
    #[error(transparent)]
    Full(#[from] Full),
    #[error("pod {0} of this node is going away")]
    Gone(Arc<str>),
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl Failure for Failed {
    fn flag(&self) -> Flag {
        match self {
            Self::Denied(why) => why.flag(),
            Self::Refused(why) => why.flag(),
            Self::Full(why) => why.flag(),
            Self::NotTold(why) => why.flag(),
            Self::Open(why) => flag_of(why),
            Self::Broken(why) => why.flag(),
            _ => Flag::Connect,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Refused(why) => return why.hint(),
            Self::Unknown(_) => Hint::NotTold,
            Self::NotTold(why) => return why.hint(),
            Self::Open(why) => Hint::of_opening(why),
            Self::Connect(_) | Self::NoAnswer(_) => Hint::CannotConnect,
            Self::Silent => Hint::Unanswered,
            Self::Lookup(_) => Hint::NameUnknown,
            Self::Denied(why) => return why.hint(),
            Self::Misdirected(why) => Hint::of_misdirection(why),
            Self::App(why) => why.hint(),
            Self::Full(why) => return why.hint(),
            Self::Gone(_) => Hint::PodGoing,
            Self::Broken(why) => return why.hint(),
        })
    }

    fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::Refused(why) => why.policy(),
            Self::Denied(why) => why.policy(),
            _ => None,
        }
    }
}

impl Failed {
    /// It failed for a reason that is the endpoint's own: another may do better. What is ours (no certificate, a request
    /// that cannot be said) would fail anywhere; what a policy decided, and what is said of the destination as such,
    /// stands.
    fn is_of_the_endpoint(&self) -> bool {
        match self {
            Self::Open(OpenError::Refused(status)) => *status >= 500,
            Self::Open(OpenError::Certificate(_) | OpenError::Malformed(_)) => false,
            Self::Misdirected(why) => matches!(why, Misdirected::Moved { .. }),
            Self::App(Unreachable::SourceLost(..)) => false,
            Self::Open(_) | Self::Connect(_) | Self::NoAnswer(_) | Self::Silent => true,
            Self::Lookup(_) | Self::App(_) | Self::Gone(_) | Self::Full(_) => true,
            Self::Refused(_) | Self::Unknown(_) | Self::NotTold(_) => false,
            Self::Denied(_) | Self::Broken(_) => false,
        }
    }
}

/// As long as Istio waits; an app behind a dead address learns of it in less time than its own patience.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection through which bytes can flow.
pub(crate) enum Opened {
    Tunnel(Box<BothWays<TcpStream, Counting>>),
    Pair(Box<Splicing<Counting>>),
    /// To where nobody is known.
    Outside(Box<Splicing<Counting>>, Arc<Live>),
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
    drop(snapshot);
    let leaving = Leaving {
        node,
        pod,
        identity,
        source,
        peer,
        original,
        joins: true,
    };
    let first = First::default();
    match reach(&leaving, &tcp, &first, report).await {
        Ok(reached) => reached.join(tcp, first.said()).await,
        Err(why) => refuse(tcp, why),
    }
}

/// Reaches where the connection leads: if not one endpoint then another, as long as nobody can notice.
async fn reach(
    leaving: &Leaving<'_>,
    tcp: &TcpStream,
    first: &First,
    report: &mut Report,
) -> Result<Reached, Failed> {
    let mut again = Again::new(leaving, first);
    let mut decision = leaving.decide().await?;
    loop {
        let at = Try::of(&decision);
        let outcome = {
            let trying = pin!(attempt(leaving, tcp, first, decision, report));
            again.outcome(&at, trying).await
        };
        let (failed, instead) = match outcome {
            Ok(Ok(reached)) => {
                again.reached(&at, report);
                return Ok(reached);
            }
            Ok(Err(why)) => (why, None),
            Err(next) => (Failed::Silent, Some(next)),
        };
        let Some(next) = again.next(at, &failed, instead, report) else {
            again.failed(report);
            return Err(failed);
        };
        decision = next;
    }
}

async fn attempt(
    leaving: &Leaving<'_>,
    tcp: &TcpStream,
    first: &First,
    decision: Decision,
    report: &mut Report,
) -> Result<Reached, Failed> {
    match decision {
        Decision::Tunnel(found) => tunnel(leaving, tcp, first, found, report).await,
        Decision::Local(found) => local::reach(leaving, found, report).await,
        Decision::Plain(found) => plain(leaving, found, report).await,
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

async fn tunnel(
    leaving: &Leaving<'_>,
    tcp: &TcpStream,
    first: &First,
    found: Tunnel,
    report: &mut Report,
) -> Result<Reached, Failed> {
    let Leaving {
        node,
        pod,
        identity,
        source,
        original,
        ..
    } = leaving;
    let found = leaving.located(found).await?;
    let connect = leaving.asking(found.authority.clone(), found.service.as_deref());
    // Who it will be behind a gateway is known only when it has answered.
    let (destination_identity, destination) = match &found.beyond {
        None => (route::identity(&found.next).ok(), found.next),
        Some(beyond) => (None, beyond.workload.clone()),
    };
    let live = report.ends(Whereabouts {
        ends: Ends {
            source: Some(source.clone()),
            source_identity: Some((*identity).clone()),
            destination_identity,
            destination: Some(destination),
            service: found.service,
            secured: true,
        },
        said: None,
        protocol: Protocol::Hbone,
        hop: found.address,
        tunnelled: Some(found.authority),
        original: *original,
        actual: found.address,
        joined: None,
    });
    let (destination, from) = leaving.towards(found.address, found.expected);
    let (pool, dial) = (node.workers.pool(), |to| pod.netns.connect(from, to));
    let Some(beyond) = found.beyond else {
        let opened = pool.open_keeping(tcp, first, &destination, dial, connect);
        return Ok(Reached::Tunnel(opened.await?, live));
    };
    // What the app says first is not the gateway's to see: it stays in the socket.
    let outer = pool.open(&destination, dial, connect.clone()).await?;
    let certificate = node.certificates.of(identity).await;
    let certificate = certificate.map_err(OpenError::from)?;
    let connect = Connect {
        x_forwarded_network: Some(source.network.to_string()).filter(|network| !network.is_empty()),
        ..connect
    };
    let expected = route::by_all_names(beyond.expected, &node.config.trust_domains);
    let inner = hbone::client::inside(outer, &certificate, &expected, &connect).await?;
    Ok(Reached::Inside(inner, live))
}

async fn plain(
    leaving: &Leaving<'_>,
    found: Plain,
    report: &mut Report,
) -> Result<Reached, Failed> {
    let Leaving {
        pod,
        identity,
        source,
        original,
        ..
    } = leaving;
    let to = leaving.resolve(&found.to).await?;
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
    if let Some(by) = found.logged_by {
        report.note(format!(
            "egress logged by {by}: the mesh knows nobody at {original}"
        ));
    }
    let from = leaving.own_address(to).map_or(From::Any, From::Own);
    Ok(Reached::Plain(connect(pod, from, to).await?, live))
}

/// A TCP connection inside the pod's namespace, from the pod's own address where the families agree.
pub(crate) async fn connect(pod: &Pod, from: From, to: SocketAddr) -> Result<TcpStream, Failed> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, pod.netns.connect(from, to)).await;
    connected
        .map_err(|_| Failed::NoAnswer(to))?
        .map_err(Failed::Connect)
}

pub(crate) fn flag_of(why: &OpenError) -> Flag {
    match why {
        OpenError::DialTimeout { .. } => Flag::NetworkPolicy,
        OpenError::Tls(why) => flag_of_tls(why),
        OpenError::HandshakeTimeout(_) => Flag::TlsFailure,
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
