//! Plaintext arrives: at port 15006, redirected by the pod's packet rules. It is judged as a client without identity.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::{Splicing, TcpPair};
use tokio::net::TcpStream;

use super::{Arriving, Failed, admit_and_reach, asked_for, source_of, whole};
use crate::arrival::{self, Misdirected};
use crate::carry::{Unknown, known, refuse};
use crate::connections::{Carrier, Counting, Live, Protocol};
use crate::node::Node;
use crate::pod::Pod;
use crate::report::{Report, Whereabouts};
use crate::route::OWN_PORTS;
use crate::traffic::{Ends, Reporter};

/// Serves one plaintext connection that was redirected to port 15006 in `pod`'s namespace.
pub fn serve_plain(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    original_dst: SocketAddr,
) -> impl Future<Output = ()> + Send + use<> {
    // Boxed for the reason that `inbound::spawn_request` gives.
    whole(Box::pin(begin_plain(
        node.clone(),
        pod.clone(),
        tcp,
        (peer, original_dst),
    )))
}

async fn begin_plain(
    node: Arc<Node>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    (peer, local): (SocketAddr, SocketAddr),
) -> (Report, Result<Plaintext, Box<Failed>>) {
    let mut report = Report::new(&node, &pod, Reporter::Destination, peer, local);
    let arriving = Arriving {
        node: &node,
        pod: &pod,
        peer,
        local,
    };
    let opened = open_plain(&arriving, tcp, &mut report).await;
    (report, opened.map_err(Box::new))
}

/// Plaintext that was admitted, and whose it is.
type Plaintext = (Box<Splicing<Counting>>, Arc<Live>);

async fn open_plain(
    arriving: &Arriving<'_>,
    tcp: TcpStream,
    report: &mut Report,
) -> Result<Plaintext, Failed> {
    let Arriving {
        node,
        pod,
        peer,
        local,
    } = *arriving;
    if OWN_PORTS.contains(&local.port()) {
        return refuse(tcp, Misdirected::SelfCall);
    }
    if let Err(why) = known(pod).await {
        return refuse(tcp, why);
    }
    if let Err(why) = asked_for(arriving, None).await {
        return refuse(tcp, why);
    }
    let snapshot = Arc::clone(&node.mesh.load());
    let Some(workload) = pod.workload(&snapshot) else {
        return refuse(tcp, Unknown);
    };
    let live = report.ends(Whereabouts {
        ends: Ends {
            source: source_of(&snapshot, &workload, peer, None),
            source_identity: None,
            destination: Some(workload.clone()),
            destination_identity: None,
            service: arrival::service_of(&snapshot, &workload, local.port(), None),
            secured: false,
        },
        said: None,
        protocol: Protocol::Tcp,
        hop: local,
        tunnelled: None,
        original: local,
        actual: local,
        joined: None,
    });
    drop(snapshot);
    if arrival::takes_tunnels_only(&workload, local.port()) {
        return refuse(tcp, Misdirected::Framed(local.port()));
    }
    let app = match admit_and_reach(arriving, &workload, &live, local, report).await {
        Ok(app) => app,
        Err(why) => return refuse(tcp, why),
    };
    let pair = TcpPair::new(app, tcp);
    live.carried_by(Carrier::Pair(pair.freezer()));
    Ok((Box::new(pair.both_ways(live.counting())), live))
}
