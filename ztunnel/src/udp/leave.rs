//! A flow leaves a pod.
//!
//! 1. its first datagram came by the pod's door                        (`udp`)
//! 2. decide, as for a connection                                      (`route::decide`, pure)
//! 3. open: a way through a tunnel, or as it is where nobody takes that ([`open`])
//! 4. carry until it is idle                                           (`carry`)
//! 5. report, whatever happened                                        (`Report` writes itself on drop)
//!
//! Who is known to carry UDP and cannot be reached through a tunnel is not called around it: whoever could cut the tunnel
//! could otherwise have everything in the clear. As it is goes what leaves the mesh, and what is for a pod that has not opted
//! in, or whose own proxy says, proven who it is, that it cannot.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::datagrams::NoWay;
use hbone::{Authority, Connect, Destination, Tunnel as Stream};
use tokio::net::UdpSocket;

use super::carry::Carrying;
use super::metrics::Way;
use super::{Failed, Flow, PASSING};
use crate::carry::{Unknown, known};
use crate::connections::{Live, Protocol};
use crate::headers;
use crate::netns::From;
use crate::outbound::Leaving;
use crate::report::{Report, Whereabouts};
use crate::route::{self, Decision, Place, Plain, Tunnel};
use crate::traffic::{Ends, Reporter};

/// A way that is open.
enum Opened {
    Tunnel(Stream),
    Plain(UdpSocket),
}

/// Carries a flow from its first datagram to its end, and reports it.
pub(super) async fn serve(mut flow: Flow) {
    let (node, pod) = (flow.flows.node.clone(), flow.flows.pod.clone());
    let (from, to) = flow.between;
    let mut report = Report::new(&node, &pod, Reporter::Source, from, to).of_datagrams();
    let opened = Box::pin(open(&flow, &mut report)).await;
    let (opened, live, app) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            report.failed(&why);
            drop(report);
            return flow.turned_away().await;
        }
    };
    let metrics = &node.udp;
    let _open = metrics.opened();
    let carrying = Carrying {
        queue: &flow.queue,
        waiting: &mut flow.waiting,
        live: &live,
        metrics,
        idle: node.config.udp_idle,
    };
    let carried = match opened {
        Opened::Tunnel(tunnel) => {
            metrics.flow(Way::Tunnel);
            carrying.in_tunnel(&app, tunnel).await
        }
        Opened::Plain(other) => {
            metrics.flow(Way::Plain);
            carrying.between(&app, &other).await
        }
    };
    match carried {
        Ok(()) => report.completed(),
        Err(why) => report.failed(&why),
    }
}

type Ready = (Opened, Arc<Live>, UdpSocket);

async fn open(flow: &Flow, report: &mut Report) -> Result<Ready, Failed> {
    let (node, pod) = (&flow.flows.node, &flow.flows.pod);
    let (from, to) = flow.between;
    let identity = &known(pod).await?.identity;
    let snapshot = Arc::clone(&node.mesh.load());
    let source = pod.workload(&snapshot).ok_or(Unknown)?;
    drop(snapshot);
    report.between(Ends {
        source: Some(source.clone()),
        source_identity: Some(identity.clone()),
        ..Ends::default()
    });
    let leaving = Leaving {
        node,
        pod,
        identity,
        source,
        peer: from,
        original: to,
        joins: false,
    };
    let (opened, live) = match leaving.decide().await? {
        Decision::Tunnel(found) => tunnel(&leaving, found, report).await?,
        Decision::Plain(found) => plain(&leaving, found, None, report).await?,
        // It is never asked for one.
        Decision::Local(found) => return Err(Failed::Front(found.address)),
    };
    // From whom the app called, to the app: answers come as from there.
    let mark = node.config.packet_mark | PASSING;
    let app = pod.netns.udp_between(to, from, mark);
    Ok((opened, live, app.map_err(Failed::Socket)?))
}

async fn tunnel(
    leaving: &Leaving<'_>,
    found: Tunnel,
    report: &mut Report,
) -> Result<(Opened, Arc<Live>), Failed> {
    let Leaving {
        node,
        pod,
        identity,
        source,
        peer,
        original,
        ..
    } = leaving;
    // Neither a waypoint nor a gateway carries it, and around them it must not go.
    let asked = match &found.authority {
        Authority::Ip(asked) if asked.ip() == found.address.ip() && found.beyond.is_none() => {
            *asked
        }
        _ => return Err(Failed::Front(*original)),
    };
    if !found.next.udp {
        return plain(leaving, as_it_is(&found, asked), None, report).await;
    }
    let live = report.ends(Whereabouts {
        ends: Ends {
            source: Some(source.clone()),
            source_identity: Some((*identity).clone()),
            destination_identity: route::identity(&found.next).ok(),
            destination: Some(found.next.clone()),
            service: found.service.clone(),
            secured: true,
        },
        said: None,
        protocol: Protocol::Udp,
        hop: found.address,
        tunnelled: Some(found.authority.clone()),
        original: *original,
        actual: found.address,
        joined: None,
    });
    let own = leaving.own_address(found.address);
    let destination = Destination {
        address: found.address,
        source_ip: own.unwrap_or(peer.ip()),
        source: (*identity).clone(),
        expected: found.expected.clone(),
    };
    let host = found.service.as_deref().map(|service| &*service.hostname);
    let connect = Connect {
        // Of a CONNECT-UDP: whom it is made to (RFC 9298, 3.4).
        authority: Authority::Ip(found.address),
        forwarded: Some(headers::forwarded(*peer, host)),
        baggage: Some(headers::baggage(source)).filter(|baggage| !baggage.is_empty()),
        traceparent: Some(headers::traceparent()),
        x_forwarded_network: None,
        source: None,
    };
    let from = own.map_or(From::Any, From::Own);
    let dial = |to| pod.netns.connect(from, to);
    let pool = node.workers.datagrams();
    let opened = pool
        .open_datagrams(&destination, dial, connect, asked)
        .await;
    match opened {
        Ok(tunnel) => Ok((Opened::Tunnel(tunnel), live)),
        Err(NoWay::Unsupported) => {
            let note = "its proxy carries no UDP: passed as it is";
            plain(leaving, as_it_is(&found, asked), Some(note), report).await
        }
        Err(NoWay::Open(why)) => Err(why.into()),
    }
}

/// To a pod whose proxy does not take it.
fn as_it_is(found: &Tunnel, asked: SocketAddr) -> Plain {
    Plain {
        to: Place::Address(asked),
        workload: Some(found.next.clone()),
        service: found.service.clone(),
        logged_by: None,
    }
}

async fn plain(
    leaving: &Leaving<'_>,
    found: Plain,
    note: Option<&'static str>,
    report: &mut Report,
) -> Result<(Opened, Arc<Live>), Failed> {
    let Leaving {
        node,
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
        protocol: Protocol::Udp,
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
    if let Some(note) = note {
        report.note(note);
    }
    let own = leaving.own_address(to);
    let other = pod.netns.udp_to(own, to, node.config.packet_mark);
    Ok((Opened::Plain(other.map_err(Failed::Socket)?), live))
}
