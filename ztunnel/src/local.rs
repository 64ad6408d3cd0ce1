//! Both ends of a connection are on this node: they are joined in process.
//!
//! What happens over the wire happens here too, in the same order: the destination's policies judge the source's
//! proven identity, the app is reached inside its own namespace from the source's address, both ends report. What
//! does not happen is TLS and HTTP/2: this process holds both identities and would talk to itself.
//!
//! 1. both reports open, the destination's connection is among the open ones
//! 2. the address is the destination's own                       (`at_home`)
//! 3. admit: the policies of the destination                    (`admit`)
//! 4. connect to the app, inside its namespace, as the source   (`inbound::app`)
//! 5. join the two sockets                                      (`Reached::join`: `hbone::TcpPair`, splice)
//! 6. report at both ends

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Splicing, TcpPair};
use mesh::Workload;
use ops::drain::Hold;
use tokio::net::TcpStream;

use crate::admit;
use crate::arrival::Misdirected;
use crate::bounds::Share;
use crate::carry::{ended, refuse};
use crate::connections::{Bytes, Carrier, Counting, Live, Protocol};
use crate::inbound;
use crate::outbound::{self, Failed, Leaving};
use crate::pod::Pod;
use crate::report::{Report, Whereabouts};
use crate::route::{self, Direct, HBONE_PORT, OWN_PORTS};
use crate::traffic::{Ends, Reporter};

/// Reaches the app of a pod of this node.
pub(crate) async fn reach(
    leaving: &Leaving<'_>,
    found: Direct,
    report: &mut Report,
) -> Result<outbound::Reached, Failed> {
    let Some(arriving) = leaving.node.pods.of_workload(&found.workload.uid) else {
        // It stopped taking connections since the decision.
        return Err(Failed::Gone(found.workload.name().into()));
    };
    let from = leaving
        .own_address(found.address)
        .unwrap_or(leaving.peer.ip());
    let seen = SocketAddr::new(from, leaving.peer.port());
    let mut there = Report::new(
        leaving.node,
        &arriving,
        Reporter::Destination,
        seen,
        tunnel_address(&found),
    );
    let here = report.ends(whereabouts(
        leaving,
        &found,
        leaving.original,
        Bytes::default(),
    ));
    let live = there.ends(whereabouts(
        leaving,
        &found,
        found.address,
        Bytes::MirrorOf(here.clone()),
    ));
    // The other pod's drain waits for this connection as for its own, and cuts it when its time is over.
    let (hold, drain) = (arriving.drain.hold(), &arriving.drain);
    let room = match leaving.node.bounds.connection(&arriving.part, None) {
        Ok(room) => room,
        Err(why) => {
            there.failed(&why);
            return Err(why.into());
        }
    };
    let reached = tokio::select! {
        reached = app(leaving, &arriving, &found, from, &live, &mut there) => reached,
        // Our own pod's end is the frame's to watch; the other's is ours.
        () = drain.now().cancelled() => Err(Failed::Gone(found.workload.name().into())),
    };
    match reached {
        Ok(app) => Ok(outbound::Reached::Local(Box::new(Reached {
            app,
            here,
            live,
            there,
            arriving,
            destination: found.workload,
            room,
            hold,
        }))),
        Err(why) => {
            there.failed(&why);
            Err(why)
        }
    }
}

/// The app of a pod of this node, before anything has moved.
pub(crate) struct Reached {
    app: TcpStream,
    here: Arc<Live>,
    /// The destination's.
    live: Arc<Live>,
    there: Report,
    arriving: Arc<Pod>,
    destination: Arc<Workload>,
    room: Share,
    hold: Hold,
}

impl Reached {
    /// Joins the two sockets; what the client has `said` already goes before the rest.
    pub(crate) async fn join(self, tcp: TcpStream, said: &[u8]) -> Result<Joined, Failed> {
        let Self {
            mut app,
            here,
            live,
            mut there,
            arriving,
            destination,
            room,
            hold,
        } = self;
        if let Err(why) = outbound::pass_on(&mut app, said, &here).await {
            there.failed(&why);
            return refuse(tcp, why);
        }
        let pair = TcpPair::new(tcp, app);
        let other = Arc::downgrade(&live);
        here.carried_by(Carrier::Joined(pair.freezer(), arriving.clone(), other));
        Ok(Joined {
            copying: pair.both_ways(here.counting()),
            live,
            there,
            arriving,
            destination,
            _room: room,
            _hold: hold,
        })
    }
}

/// A connection between two pods of this node, open.
pub(crate) struct Joined {
    copying: Splicing<Counting>,
    /// The destination's.
    live: Arc<Live>,
    there: Report,
    arriving: Arc<Pod>,
    destination: Arc<Workload>,
    _room: Share,
    _hold: Hold,
}

impl Joined {
    /// Until both directions have ended, the destination's policies deny it, or its pod goes.
    pub(crate) async fn carry(self: Box<Self>) -> Result<(), Failed> {
        let Self {
            mut copying,
            live,
            mut there,
            arriving,
            destination,
            _room,
            _hold,
        } = *self;
        let joined = tokio::select! {
            done = &mut copying => ended(done),
            denied = live.denied() => Err(Failed::Denied(denied)),
            () = arriving.drain.now().cancelled() => Err(Failed::Gone(destination.name().into())),
        };
        match &joined {
            Ok(()) => there.completed(),
            Err(why) => there.failed(why),
        }
        joined
    }
}

/// The destination's policies agree, then its app is there.
async fn app(
    leaving: &Leaving<'_>,
    arriving: &Arc<Pod>,
    found: &Direct,
    from: IpAddr,
    there: &Live,
    report: &mut Report,
) -> Result<TcpStream, Failed> {
    if OWN_PORTS.contains(&found.address.port()) {
        return Err(Misdirected::SelfCall.into());
    }
    at_home(arriving, found)?;
    admit::admit(leaving.node, &found.workload.uid, there).await?;
    Ok(inbound::app::reach(leaving.node, arriving, from, found.address, report).await?)
}

/// Over the wire the address has led to the pod before anything else is asked; here it was only looked up. A pod that
/// is made anew under its name (StatefulSet) is found by the old workload until the control plane tells of its new
/// address: carried, the connection would leave its namespace again, in clear text, to whoever has the old one.
///
/// Asked each time, of the kernel: an answer that is kept could be the old one. One socket, some 10 µs.
fn at_home(arriving: &Pod, found: &Direct) -> Result<(), Failed> {
    let asked = found.address.ip();
    let here = arriving.netns.has_address(asked);
    if here.map_err(Failed::Connect)? {
        return Ok(());
    }
    let pod = arriving.name.clone();
    Err(Misdirected::Moved { asked, pod }.into())
}

fn whereabouts<'a>(
    leaving: &Leaving<'_>,
    found: &Direct,
    original: SocketAddr,
    bytes: Bytes,
) -> Whereabouts<'a> {
    Whereabouts {
        ends: Ends {
            source: Some(leaving.source.clone()),
            source_identity: Some(leaving.identity.clone()),
            destination_identity: route::identity(&found.workload).ok(),
            destination: Some(found.workload.clone()),
            service: found.service.clone(),
            secured: true,
        },
        said: None,
        protocol: Protocol::Tcp,
        // As over the wire, so that one filter finds both kinds; `path` tells them apart.
        hop: tunnel_address(found),
        tunnelled: Some(Authority::Ip(found.address)),
        original,
        actual: found.address,
        joined: Some(bytes),
    }
}

fn tunnel_address(found: &Direct) -> SocketAddr {
    SocketAddr::new(found.address.ip(), HBONE_PORT)
}
