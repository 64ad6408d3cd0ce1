//! A flow leaves a pod.
//!
//! 1. its first datagram came by the pod's door                        (`udp`)
//! 2. decide, as for a connection                                      (`route::decide`, pure)
//! 3. open: a way through a tunnel, or as it is where nobody takes that (`passage`, pure; [`attempt`])
//! 4. or, where that fails, another endpoint of the same service       (`outbound::Again`)
//! 5. carry until it is idle, or its endpoint has gone: what comes then is another flow, with another endpoint (`carry`)
//! 6. report, whatever happened                                        (`Report` writes itself on drop)
//!
//! Who is known to carry UDP and cannot be reached through a tunnel is not called around it: whoever could cut the tunnel
//! could otherwise have everything in the clear. As it is goes what leaves the mesh, and what is for a pod that has not opted
//! in, or whose own proxy says, proven who it is, that it cannot.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hbone::datagrams::NoWay;
use hbone::{Authority, First, Tunnel as Stream};
use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::carry::Carrying;
use super::metrics::Way;
use super::passage::{Endpoint, Passage, as_it_is};
use super::{Failed, Flow, PASSING};
use crate::carry::{Unknown, known};
use crate::connections::{Live, Protocol};
use crate::node::Node;
use crate::outbound::{self, Again, Leaving, Try};
use crate::report::{Report, Whereabouts};
use crate::route::{self, Decision, Plain, Tunnel};
use crate::traffic::{Ends, Reporter};

/// A way that is open.
struct Opened {
    by: By,
    live: Arc<Live>,
    /// None where it only has a name for a place outside.
    endpoint: Option<Endpoint>,
}

enum By {
    Tunnel(Stream),
    Plain(UdpSocket),
}

/// Carries a flow from its first datagram to its end, and reports it.
pub(super) async fn serve(mut flow: Flow) {
    let (node, pod) = (flow.flows.node.clone(), flow.flows.pod.clone());
    let (from, to) = flow.between;
    let mut report = Report::new(&node, &pod, Reporter::Source, from, to).of_datagrams();
    let opened = Box::pin(open(&flow, &mut report)).await;
    let (Opened { by, live, endpoint }, app) = match opened {
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
        netns: &pod.netns,
        idle: node.config.udp_idle,
    };
    let carry = async {
        match by {
            By::Tunnel(tunnel) => {
                metrics.flow(Way::Tunnel);
                carrying.in_tunnel(&app, tunnel).await
            }
            By::Plain(other) => {
                metrics.flow(Way::Plain);
                carrying.between(&app, &other).await
            }
        }
    };
    let carried = tokio::select! {
        carried = carry => carried,
        () = until_gone(&node, endpoint) => {
            report.note(GONE);
            Ok(())
        }
    };
    match carried {
        Ok(()) => report.completed(),
        Err(why) => report.failed(&why),
    }
}

/// Returns when what was decided would not be decided so again, as far as the endpoint goes: an app that keeps sending would
/// otherwise send to nobody, for ever.
async fn until_gone(node: &Node, endpoint: Option<Endpoint>) {
    let Some(endpoint) = endpoint else {
        return std::future::pending().await;
    };
    loop {
        sleep(LOOK).await;
        if !endpoint.stands(&node.mesh.load()) {
            return;
        }
    }
}

async fn open(flow: &Flow, report: &mut Report) -> Result<(Opened, UdpSocket), Failed> {
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
    let opened = reach(&leaving, report).await?;
    // From whom the app called, to the app: answers come as from there.
    let mark = node.config.packet_mark | PASSING;
    let app = pod.netns.udp_between(to, from, mark);
    Ok((opened, app.map_err(Failed::Socket)?))
}

/// Opens a way to where the flow leads: if not to one endpoint then to another. What the app sends waits meanwhile, as far as
/// there is room.
async fn reach(leaving: &Leaving<'_>, report: &mut Report) -> Result<Opened, Failed> {
    // No datagram has left before there is a way: each may go to another.
    let unsaid = First::default();
    let mut again = Again::new(leaving, &unsaid);
    let mut decision = leaving.decide().await?;
    loop {
        let at = Try::of(&decision);
        let outcome = {
            let trying = pin!(attempt(leaving, decision, report));
            again.outcome(&at, trying).await
        };
        let (failed, instead) = match outcome {
            Ok(Ok(opened)) => {
                again.reached(&at, report);
                return Ok(opened);
            }
            Ok(Err(why)) => (why, None),
            Err(next) => (outbound::Failed::Silent.into(), Some(next)),
        };
        let next = match &failed {
            Failed::Connecting(why) => again.next(at, why, instead, report),
            _ => None,
        };
        let Some(next) = next else {
            again.failed(report);
            return Err(failed);
        };
        decision = next;
    }
}

async fn attempt(
    leaving: &Leaving<'_>,
    decision: Decision,
    report: &mut Report,
) -> Result<Opened, Failed> {
    match decision {
        Decision::Tunnel(found) => tunnel(leaving, found, report).await,
        Decision::Plain(found) => plain(leaving, found, None, report).await,
        // It is never asked for one.
        Decision::Local(found) => Err(Failed::Front(found.address)),
    }
}

async fn tunnel(
    leaving: &Leaving<'_>,
    found: Tunnel,
    report: &mut Report,
) -> Result<Opened, Failed> {
    let Leaving {
        node,
        pod,
        identity,
        source,
        original,
        ..
    } = leaving;
    let found = leaving.located(found).await?;
    let asked = match Passage::of(&found) {
        Passage::Tunnel(asked) => asked,
        Passage::Plain(as_it_is) => return plain(leaving, as_it_is, None, report).await,
        Passage::Front => return Err(Failed::Front(*original)),
    };
    let endpoint = Endpoint::new(&found.next, found.service.as_ref());
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
    let (destination, from) = leaving.towards(found.address, found.expected.clone());
    // Of a CONNECT-UDP: whom it is made to (RFC 9298, 3.4).
    let asked_of = Authority::Ip(found.address);
    let connect = leaving.asking(asked_of, found.service.as_deref());
    let dial = |to| pod.netns.connect(from, to);
    let pool = node.workers.datagrams();
    let opened = pool
        .open_datagrams(&destination, dial, connect, asked)
        .await;
    match opened {
        Ok(tunnel) => Ok(Opened {
            by: By::Tunnel(tunnel),
            live,
            endpoint: Some(endpoint),
        }),
        Err(NoWay::Unsupported) => {
            let note = "its proxy carries no UDP: passed as it is";
            plain(leaving, as_it_is(&found, asked), Some(note), report).await
        }
        Err(why) => Err(why.into()),
    }
}

async fn plain(
    leaving: &Leaving<'_>,
    found: Plain,
    note: Option<&'static str>,
    report: &mut Report,
) -> Result<Opened, Failed> {
    let Leaving {
        node,
        pod,
        identity,
        source,
        original,
        ..
    } = leaving;
    let to = leaving.resolve(&found.to).await?;
    let endpoint = Endpoint::of_plain(&found, source, to);
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
    Ok(Opened {
        by: By::Plain(other.map_err(Failed::Socket)?),
        live,
        endpoint,
    })
}

/// How often it is looked whether an endpoint is still there.
const LOOK: Duration = Duration::from_secs(1);
const GONE: &str =
    "its endpoint went away, or is reached in another way now: what follows is another flow";
