//! A tunnel arrives; plaintext arrives.
//!
//! A tunnel (15008):
//! 1. TLS: the peer proves who it is                             (`hbone::accept`)
//! 2. for each CONNECT: does it lead into this pod?              (`arrival`, pure)
//! 3. admit: the policies, on the proven identity                (`admit`)
//! 4. reach the app from the client's own address                (`app::reach`)
//! 5. answer 200                                                 (`open_request`)
//! 6. copy, report
//!
//! Plaintext (15006, redirected by the pod's packet rules): the same from 3 on, without an identity (`plain`).

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::{
    AcceptError, Authority, BothWays, CertificateError, ConnectionError, Ended, Identity, Incoming,
    Limits, Malformed, Request, ResponseHeaders, Status,
};
use mesh::Workload;
use mesh::workload::ApplicationProtocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::admit::{self, Denied};
use crate::arrival::{self, Misdirected};
use crate::bounds::Full;
use crate::carry::{Broken, Unknown, ended, flag_of_tls, known, refuse};
use crate::connections::{Carrier, Counting, Live, Protocol};
use crate::headers;
use crate::hint::Hint;
use crate::node::Node;
use crate::on_demand::NotTold;
use crate::pod::Pod;
use crate::preamble;
use crate::report::{Failure, Report, Whereabouts};
use crate::route;
use crate::traffic::{Ends, Flag, Reporter};
use crate::udp;

pub(crate) mod app;
mod plain;

pub(crate) use app::Unreachable;
pub use plain::serve_plain;

/// Why a connection that arrived did not get to the app.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("no certificate for this pod: {0}")]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    CutOff(#[from] ConnectionError),
    #[error(transparent)]
    NotTold(#[from] NotTold),
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    App(#[from] Unreachable),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("the client gave up before it was answered")]
    Abandoned,
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Serves one connection to port 15008 in `pod`'s namespace: TLS, then any number of tunnels.
pub async fn serve_tunnel(
    node: Arc<Node>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let (node, pod) = (&node, &pod);
    let connection = match accept(node, pod, tcp).await {
        Ok(connection) => connection,
        Err(why) => {
            let mut report = Report::new(node, pod, Reporter::Destination, peer, local);
            report.between(known_of(pod));
            report.failed(&why);
            return;
        }
    };
    serve_connection(node, pod, connection, peer, local).await;
}

/// Serves the tunnels of a proven peer.
pub(crate) async fn serve_connection(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    mut connection: hbone::Connection,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let freezer = connection.freezer().ok();
    let mut listed = freezer.map(|freezer| node.handover.arrived(freezer, pod, (peer, local)));
    let may_stay = listed.is_some();
    let leaving = async {
        pod.drain.accepting().cancelled().await;
        // If a successor is about to go on with it, the peer need not hear of it.
        if may_stay {
            node.handover.undecided().await;
        }
    };
    tokio::pin!(leaving);
    let mut draining = false;
    loop {
        let incoming = tokio::select! {
            incoming = connection.next() => incoming,
            () = &mut leaving, if !draining => {
                // Streams that are open go on; the peer opens no new ones here.
                draining = true;
                connection.drain(node.config.drain_deadline());
                continue;
            }
        };
        match incoming {
            Some(Ok(Incoming::Request(request))) => {
                if request.datagrams {
                    // Its state is not written down: it drains, and flows begin anew with the successor.
                    drop(listed.take());
                }
                spawn_request(node, pod, request, connection.peer(), peer, local);
            }
            Some(Ok(Incoming::Refused(why))) => {
                told(node, pod, peer, local, connection.peer(), &why.into());
            }
            // Another process goes on with it.
            Some(Err(ConnectionError::HandedOver)) => return,
            // Its tunnels, if it had any, say for themselves how they ended.
            Some(Err(
                why @ (ConnectionError::Lost(_)
                | ConnectionError::DrainDeadline(_)
                | ConnectionError::Disbelieved(_)),
            )) => {
                tracing::debug!(src.addr = %peer, dst.addr = %local, %why, "tunnel connection ended");
            }
            Some(Err(why)) => told(node, pod, peer, local, connection.peer(), &why.into()),
            None => return,
        }
    }
}

/// One line, counted as failed, for what a proven peer did that is no tunnel. How many lines a peer can cause is
/// bounded where lines are written: the log drops and counts what it cannot keep up with.
fn told(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    peer: SocketAddr,
    local: SocketAddr,
    identity: &Identity,
    why: &Failed,
) {
    let mut report = Report::new(node, pod, Reporter::Destination, peer, local);
    let mut ends = known_of(pod);
    if let Some(destination) = &ends.destination {
        ends.source = source_of(&node.mesh.load(), destination, peer, Some(identity));
    }
    ends.source_identity = Some(identity.clone());
    ends.secured = true;
    report.between(ends);
    report.failed(why);
}

async fn accept(node: &Node, pod: &Pod, tcp: TcpStream) -> Result<hbone::Connection, Failed> {
    let _under_way = match node.bounds.handshake(&pod.part) {
        Ok(share) => share,
        Err(full) => return refuse(tcp, full),
    };
    let certificate = async {
        let identity = &known(pod).await?.identity;
        Ok::<_, Failed>(node.certificates.of(identity).await?)
    };
    let certificate = tokio::select! {
        biased;
        certificate = certificate => certificate?,
        () = silent_end(&tcp) => return Err(Failed::Abandoned),
    };
    if udp::is_carried(node, pod) {
        let limits = Limits {
            datagrams: true,
            ..node.limits.clone()
        };
        return Ok(hbone::accept(tcp, certificate, &limits).await?);
    }
    Ok(hbone::accept(tcp, certificate, &node.limits).await?)
}

/// Ends when the peer has gone without a word. While a pod waits for its certificate, those who gave up must not hold
/// descriptors that the way to the control plane may need.
async fn silent_end(tcp: &TcpStream) {
    if matches!(tcp.peek(&mut [0]).await, Ok(1..)) {
        std::future::pending().await
    }
}

/// What is certain before a peer has proven anything: whose door it knocked at.
pub(crate) fn known_of(pod: &Pod) -> Ends {
    let Some(known) = pod.known() else {
        return Ends::default();
    };
    Ends {
        destination: Some(known.workload.clone()),
        destination_identity: Some(known.identity.clone()),
        ..Ends::default()
    }
}

/// Each tunnel is a task of its own, on the thread of its connection: one that ends badly takes no other with it. A
/// client that is busy opens several connections.
fn spawn_request(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    request: Request,
    identity: &Identity,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let share = match node.bounds.connection(&pod.part, None) {
        Ok(share) => share,
        Err(full) => {
            request.refuse(Status::Unavailable);
            return told(node, pod, peer, local, identity, &full.into());
        }
    };
    let (load, cut) = (node.workers.stay(), pod.drain.now().clone());
    if request.datagrams {
        let asked = udp::Asked {
            request,
            identity: identity.clone(),
            peer,
            local,
            room: share,
        };
        let serving = Box::pin(udp::arrive(node.clone(), pod.clone(), asked));
        pod.drain.spawn(Box::pin(async move {
            let _load = load;
            let _ = cut.run_until_cancelled(serving).await;
        }));
        return;
    }
    // Boxed, and what it is given with it: to answer takes kilobytes, and is over before the tunnel's long life begins.
    let opening = Box::pin(begin_request(
        node.clone(),
        pod.clone(),
        request,
        identity.clone(),
        (peer, local),
    ));
    // Boxed for the reason that `pod::take` gives.
    pod.drain.spawn(Box::pin(async move {
        let _held = (load, share);
        // Cut, the report says so when it is dropped.
        let _ = cut.run_until_cancelled(whole(opening)).await;
    }));
}

/// Opens what arrived, carries it and reports it, whatever happened.
async fn whole<C: Future<Output = Ended> + Unpin>(
    opening: impl Future<Output = (Report, Result<(C, Arc<Live>), Box<Failed>>)>,
) {
    let (mut report, opened) = opening.await;
    let carried = match opened {
        Ok((copying, live)) => carry(copying, &live).await,
        Err(why) => Err(*why),
    };
    match carried {
        Ok(()) => report.completed(),
        Err(why) => report.failed(&why),
    }
}

/// Copies to the end, or until a policy is against it.
async fn carry(copying: impl Future<Output = Ended> + Unpin, live: &Live) -> Result<(), Failed> {
    tokio::select! {
        done = copying => ended(done),
        denied = live.denied() => Err(denied.into()),
    }
}

async fn begin_request(
    node: Arc<Node>,
    pod: Arc<Pod>,
    request: Request,
    identity: Identity,
    (peer, local): (SocketAddr, SocketAddr),
) -> (Report, Result<Carrying, Box<Failed>>) {
    let mut report = Report::new(&node, &pod, Reporter::Destination, peer, local);
    let arriving = Arriving {
        node: &node,
        pod: &pod,
        peer,
        local,
    };
    let opened = open_request(&arriving, request, identity, &mut report).await;
    (report, opened.map_err(Box::new))
}

/// A tunnel that was granted, and whose it is.
type Carrying = (Box<BothWays<TcpStream, Counting>>, Arc<Live>);

/// A connection on its way in, as its sockets see it.
pub(crate) struct Arriving<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

async fn open_request(
    arriving: &Arriving<'_>,
    mut request: Request,
    identity: Identity,
    report: &mut Report,
) -> Result<Carrying, Failed> {
    let Arriving {
        node,
        pod,
        peer,
        local,
    } = *arriving;
    if let Err(why) = asked_for(arriving, Some(&request.authority)).await {
        request.refuse(Status::Unavailable);
        return Err(why.into());
    }
    let snapshot = Arc::clone(&node.mesh.load());
    let Some(workload) = pod.workload(&snapshot) else {
        request.refuse(Status::Unavailable);
        return Err(Unknown.into());
    };
    let ends = Ends {
        source: source_of(&snapshot, &workload, peer, Some(&identity)),
        source_identity: Some(identity),
        destination_identity: pod.known().map(|known| known.identity.clone()),
        destination: Some(workload.clone()),
        service: None,
        secured: true,
    };
    let arrival = match arrival::arrival(&snapshot, &workload, local, &request.authority) {
        Ok(arrival) => arrival,
        Err(why) => {
            report.between(ends);
            request.refuse(why.status());
            return Err(why.into());
        }
    };
    let app = SocketAddr::new(local.ip(), arrival.port);
    let meant = request.headers.forwarded_host();
    let service = arrival
        .service
        .or_else(|| arrival::service_of(&snapshot, &workload, arrival.port, meant));
    let host = service.as_ref().map(|service| service.hostname.clone());
    let live = report.ends(Whereabouts {
        ends: Ends { service, ..ends },
        said: request.headers.baggage.as_deref(),
        protocol: Protocol::Hbone,
        hop: local,
        tunnelled: Some(request.authority.clone()),
        original: app,
        actual: app,
        joined: None,
    });
    drop(snapshot);
    let reached = tokio::select! {
        reached = admit_and_reach(arriving, &workload, &live, app, report) => reached,
        () = request.abandoned() => return Err(Failed::Abandoned),
    };
    let mut app = match reached {
        Ok(app) => app,
        Err(why) => {
            request.refuse(if matches!(why, Failed::Denied(_)) {
                Status::Denied
            } else {
                Status::Unavailable
            });
            return Err(why);
        }
    };
    if workload
        .application_tunnel
        .is_some_and(|tunnel| tunnel.protocol == ApplicationProtocol::Proxy)
    {
        let asked = match request.authority {
            Authority::Ip(asked) => asked,
            Authority::Host(_, port) => SocketAddr::new(local.ip(), port),
        };
        let preamble = preamble::preamble(peer, asked, live.principal(), host.as_deref());
        app.write_all(&preamble)
            .await
            .map_err(Unreachable::Refused)?;
    }
    let baggage = Some(headers::baggage(&workload)).filter(|baggage| !baggage.is_empty());
    let tunnel = request
        .accept(ResponseHeaders { baggage })
        .map_err(|_| Failed::Abandoned)?;
    if let Ok(freezer) = tunnel.freezer() {
        live.carried_by(Carrier::Tunnel(freezer, tunnel.stream()));
    }
    let copying = hbone::both_ways(app, tunnel, live.counting());
    Ok((Box::new(copying), live))
}

/// Where not everything is followed, whoever it takes to judge a connection, and to tell of it, has been asked for.
pub(crate) async fn asked_for(
    arriving: &Arriving<'_>,
    authority: Option<&Authority>,
) -> Result<(), NotTold> {
    let Arriving { node, pod, .. } = arriving;
    let Some(on_demand) = &node.on_demand else {
        return Ok(());
    };
    let Some(workload) = pod.workload(&node.mesh.load()) else {
        return Ok(()); // refused in a moment
    };
    // Boxed: hardly anybody has this, and everybody would have the room for it.
    Box::pin(async {
        if let Some(authority) = authority {
            let local = arriving.local.ip();
            on_demand
                .leads_here(node, &workload, local, authority)
                .await?;
        }
        on_demand
            .arriving(node, &workload, arriving.peer.ip())
            .await;
        Ok(())
    })
    .await
}

/// The policies agree, then the app is there.
async fn admit_and_reach(
    arriving: &Arriving<'_>,
    workload: &Workload,
    live: &Live,
    app: SocketAddr,
    report: &mut Report,
) -> Result<TcpStream, Failed> {
    admit::admit(arriving.node, &workload.uid, live).await?;
    Ok(app::reach(arriving.node, arriving.pod, arriving.peer.ip(), app, report).await?)
}

/// The workload behind the peer's address, if it is who the certificate says: behind a gateway or a NAT the address
/// is somebody else's.
pub(crate) fn source_of(
    snapshot: &mesh::Snapshot,
    destination: &Workload,
    peer: SocketAddr,
    proven: Option<&Identity>,
) -> Option<Arc<Workload>> {
    let found = snapshot.workload_at(&destination.network, peer.ip())?;
    let is_it = proven.is_none_or(|proven| route::proves(proven, found));
    is_it.then(|| found.clone())
}

impl Failure for Failed {
    fn flag(&self) -> Flag {
        match self {
            Self::Unknown(_) | Self::Certificate(_) => Flag::Connect,
            Self::Malformed(_) | Self::CutOff(_) => Flag::Connect,
            Self::Accept(AcceptError::Preface(_)) => Flag::H2HandshakeFailure,
            Self::Accept(AcceptError::Tls(why)) => flag_of_tls(why),
            Self::Accept(AcceptError::Slow(_)) => Flag::TlsFailure,
            Self::Misdirected(why) => why.flag(),
            Self::Denied(why) => why.flag(),
            Self::NotTold(why) => why.flag(),
            Self::Full(why) => why.flag(),
            Self::App(_) => Flag::Connect,
            Self::Broken(why) => why.flag(),
            Self::Abandoned => Flag::None,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Unknown(_) => Hint::NotTold,
            Self::NotTold(why) => return why.hint(),
            Self::Certificate(why) => Hint::of_certificate(why),
            Self::Accept(why) => Hint::of_accepting(why),
            Self::Malformed(_) => Hint::BadRequest,
            Self::CutOff(why) => Hint::of_end(why),
            Self::Misdirected(why) => Hint::of_misdirection(why),
            Self::Denied(why) => return why.hint(),
            Self::App(why) => why.hint(),
            Self::Full(why) => return why.hint(),
            Self::Abandoned => Hint::GaveUp,
            Self::Broken(why) => return why.hint(),
        })
    }

    fn policy(&self) -> Option<&Arc<str>> {
        match self {
            Self::Denied(why) => why.policy(),
            _ => None,
        }
    }
}
