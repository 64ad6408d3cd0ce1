//! A flow arrives: in a tunnel, from a proven peer, or as it is.
//!
//! 1. does it lead into this pod?                              (`arrival`, pure; `inbound::asked_for`)
//! 2. admit: the policies, on the proven identity or none      (`admit`)
//! 3. a socket with the client's address, to the app           ([`reach`])
//! 4. carry until it is idle, the other end ends it, or a policy is against it
//!
//! What comes as it is was on its way to the app; it is let through, or not. The app's answers to it go the way that they
//! always went: the port that they come from is the app's own, and nobody else can send from it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Identity, Request, ResponseHeaders, Status, Tunnel};
use tokio::net::UdpSocket;

use super::carry::{Carrying, Queue};
use super::metrics::Way;
use super::{Failed, Flow, PASSING, is_carried};
use crate::admit::admit;
use crate::arrival::{self, Misdirected};
use crate::bounds::Share;
use crate::carry::{Unknown, known};
use crate::connections::{Live, Protocol};
use crate::headers;
use crate::inbound::{Arriving, asked_for, source_of};
use crate::node::Node;
use crate::pod::Pod;
use crate::report::{Report, Whereabouts};
use crate::traffic::{Ends, Reporter};

/// Who asked, and where.
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) identity: Identity,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) room: Share,
}

/// Serves a request for a way for datagrams, to its end.
pub(crate) async fn arrive(node: Arc<Node>, pod: Arc<Pod>, asked: Asked) {
    let Asked {
        request,
        identity,
        peer,
        local,
        room: _room,
    } = asked;
    let report = Report::new(&node, &pod, Reporter::Destination, peer, local);
    let mut report = report.of_datagrams();
    let arriving = Arriving {
        node: &node,
        pod: &pod,
        peer,
        local,
    };
    let opened = Box::pin(open(&arriving, request, identity, &mut report)).await;
    let (tunnel, app, live) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            node.udp.flow(Way::Refused);
            return report.failed(&why);
        }
    };
    let metrics = &node.udp;
    metrics.flow(Way::Arrived);
    let _open = metrics.opened();
    let (queue, mut waiting) = Queue::new(pod.part.datagrams.clone());
    let carrying = Carrying {
        queue: &queue,
        waiting: &mut waiting,
        live: &live,
        metrics,
        netns: &pod.netns,
        idle: node.config.udp_idle,
    };
    match carrying.in_tunnel(&app, tunnel).await {
        Ok(()) => report.completed(),
        Err(why) => report.failed(&why),
    }
}

async fn open(
    arriving: &Arriving<'_>,
    mut request: Request,
    identity: Identity,
    report: &mut Report,
) -> Result<(Tunnel, UdpSocket, Arc<Live>), Failed> {
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
    if !is_carried(node, pod) {
        report.between(ends);
        request.refuse(Status::BadRequest);
        return Err(Failed::NotCarried(workload.uid.clone()));
    }
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
    drop(snapshot);
    let live = report.ends(Whereabouts {
        ends: Ends { service, ..ends },
        said: request.headers.baggage.as_deref(),
        protocol: Protocol::Udp,
        hop: local,
        tunnelled: Some(request.authority.clone()),
        original: app,
        actual: app,
        joined: None,
    });
    let admitted = tokio::select! {
        admitted = admit(node, &workload.uid, &live) => admitted,
        () = request.abandoned() => return Err(Failed::Abandoned),
    };
    if let Err(why) = admitted {
        request.refuse(Status::Denied);
        return Err(why.into());
    }
    let client = client(&request, peer);
    let socket = match reach(node, pod, client, app, node.config.packet_mark, report) {
        Ok(socket) => socket,
        Err(why) => {
            request.refuse(Status::Unavailable);
            return Err(Failed::Socket(why));
        }
    };
    let baggage = Some(headers::baggage(&workload)).filter(|baggage| !baggage.is_empty());
    let tunnel = request
        .accept(ResponseHeaders { baggage })
        .map_err(|_| Failed::Abandoned)?;
    Ok((tunnel, socket, live))
}

/// The client's address, with the port that its own proxy tells: answers go to it through that proxy, so that it can lie to
/// nobody but itself.
fn client(request: &Request, peer: SocketAddr) -> SocketAddr {
    let told = request.headers.forwarded_for();
    let same = told.filter(|told| told.ip() == peer.ip() && told.port() != 0);
    same.unwrap_or(peer)
}

/// A socket to the app, from the client's own address where that can be had.
fn reach(
    node: &Node,
    pod: &Pod,
    client: SocketAddr,
    app: SocketAddr,
    mark: u32,
    report: &mut Report,
) -> io::Result<UdpSocket> {
    let demanded = node.config.require_original_source;
    if demanded != Some(false) && client.is_ipv4() == app.is_ipv4() {
        match pod.netns.udp_between(client, app, mark) {
            Err(why) if demanded == Some(true) => return Err(why),
            Err(_) => {}
            reached => return reached,
        }
    }
    report.note("the app sees this pod's address instead of the client's");
    let own = Some(app.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    pod.netns.udp_to(own, app, mark)
}

/// Lets a plain flow through to the app, or not.
pub(super) async fn serve_plain(mut flow: Flow) {
    let (node, pod) = (flow.flows.node.clone(), flow.flows.pod.clone());
    let (from, to) = flow.between;
    let report = Report::new(&node, &pod, Reporter::Destination, from, to);
    let mut report = report.of_datagrams();
    let (app, live) = match Box::pin(open_plain(&flow, &mut report)).await {
        Ok(opened) => opened,
        Err(why) => {
            report.failed(&why);
            drop(report);
            return flow.turned_away().await;
        }
    };
    let metrics = &node.udp;
    metrics.flow(Way::ArrivedPlain);
    let _open = metrics.opened();
    let carrying = Carrying {
        queue: &flow.queue,
        waiting: &mut flow.waiting,
        live: &live,
        metrics,
        netns: &pod.netns,
        idle: node.config.udp_idle,
    };
    match carrying.to(&app).await {
        Ok(()) => report.completed(),
        Err(why) => report.failed(&why),
    }
}

async fn open_plain(flow: &Flow, report: &mut Report) -> Result<(UdpSocket, Arc<Live>), Failed> {
    let (node, pod) = (&flow.flows.node, &flow.flows.pod);
    let (from, to) = flow.between;
    if to.ip().is_loopback() {
        // The rules send nothing here that was for this address: an app called our door itself. Let through, it would come
        // straight back, for ever.
        return Err(Misdirected::SelfCall.into());
    }
    known(pod).await?;
    let arriving = Arriving {
        node,
        pod,
        peer: from,
        local: to,
    };
    asked_for(&arriving, None).await?;
    let snapshot = Arc::clone(&node.mesh.load());
    let workload = pod.workload(&snapshot).ok_or(Unknown)?;
    let live = report.ends(Whereabouts {
        ends: Ends {
            source: source_of(&snapshot, &workload, from, None),
            source_identity: None,
            destination: Some(workload.clone()),
            destination_identity: None,
            service: arrival::service_of(&snapshot, &workload, to.port(), None),
            secured: false,
        },
        said: None,
        protocol: Protocol::Udp,
        hop: to,
        tunnelled: None,
        original: to,
        actual: to,
        joined: None,
    });
    drop(snapshot);
    admit(node, &workload.uid, &live).await?;
    let mark = node.config.packet_mark | PASSING;
    let app = pod.netns.udp_between(from, to, mark);
    Ok((app.map_err(Failed::Socket)?, live))
}
