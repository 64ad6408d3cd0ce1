//! Pure: what becomes of a connection, or of datagrams, that somebody describes, and why. `/explain` of the admin door.
//!
//! 1. who calls, and whom                                        (`meant`)
//! 2. what the source's end does, by what connections get        (`leaving` → `route::decide`)
//! 3. what the destination's end does, by what they get there    (`arriving` → `mesh::judge`)
//! 4. each policy and each of its conditions                     (`conditions`)
//!
//! Every ztunnel of the mesh can answer, but only the one of a pod's own node decides about it: `here` says whose
//! answer that is. Whoever asks both has what happens (`ambit explain`).

mod arriving;
mod conditions;
mod leaving;
mod meant;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh::{Locality, NamespacedHost, Network, Snapshot, Tunnel, Workload};
use serde::{Deserialize, Serialize};

use crate::report::Name;
use crate::route;
use arriving::{Arriving, Destination};
use leaving::{Source, leaving};
use meant::{Caller, Meant};

/// A connection that somebody describes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    /// `namespace/pod`, an address, or the uid of a workload.
    src: String,
    /// The same, or a service's host; a port may follow.
    dst: String,
    port: Option<u16>,
    /// Only one of the ends: `destination` means that it arrives at `dst` itself.
    side: Option<Side>,
    /// How it arrives at `dst`, where who calls does not tell: waypoints call by tunnels, though nothing tunnels to them.
    by: Option<By>,
    /// What is spoken.
    #[serde(default)]
    protocol: Spoken,
}

/// A connection, or a flow of datagrams.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Spoken {
    #[default]
    Tcp,
    Udp,
}

impl Spoken {
    /// Its owner has opted in to have it carried; connections need no such word.
    fn is_carried(self, of: &Workload) -> bool {
        self == Self::Tcp || of.udp
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Source,
    Destination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Tunnel,
    Plain,
}

impl Question {
    /// The addresses that are spoken of.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let destination = meant::split(&self.dst).0;
        let named = [&*self.src, destination].into_iter();
        named.filter_map(|text| text.parse().ok())
    }

    /// The services that may be meant by the destination.
    pub(crate) fn hosts(&self, cluster_domain: &str) -> Vec<NamespacedHost> {
        let (name, caller) = (meant::split(&self.dst).0, self.src.split_once('/'));
        let namespace = caller.map_or("", |(namespace, _)| namespace);
        meant::hosts(name, namespace, cluster_domain)
    }

    /// Whose connection it is, if that is known, and where it goes.
    pub(crate) fn leads(&self, view: &View<'_>) -> Option<(Arc<Workload>, SocketAddr)> {
        let caller = Caller::of(view, &self.src).ok()?;
        let meant = Meant::of(view, &caller, &self.dst, self.port).ok()?;
        Some((caller.workload?, meant.destination))
    }
}

/// What is known where it is asked.
pub(crate) struct View<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// This node's.
    pub(crate) node: &'a str,
    pub(crate) network: &'a Network,
    pub(crate) cluster_domain: &'a str,
    pub(crate) nowhere: &'a Locality,
    pub(crate) resolvers: &'a [SocketAddr],
    /// Nothing is joined in process.
    pub(crate) force_tunnel: bool,
    /// Its pod is served by this ztunnel.
    pub(crate) is_here: &'a dyn Fn(&Workload) -> bool,
    /// It failed just now, asked for this port by who calls this destination.
    pub(crate) is_avoided: &'a dyn Fn(&Workload, u16, SocketAddr) -> bool,
}

/// What becomes of it, as far as it is known here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explained<'a> {
    node: &'a str,
    protocol: Spoken,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// None where it does not come to a workload, or not straight.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Destination>,
}

/// A workload, as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Person {
    uid: Arc<str>,
    namespace: Arc<str>,
    name: String,
    /// Who owns it: a Deployment, say.
    workload: Arc<str>,
    node: Arc<str>,
    identity: Option<String>,
    addresses: Vec<IpAddr>,
    in_mesh: bool,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<String>,
}

impl Person {
    fn of(workload: &Arc<Workload>) -> Self {
        Self {
            uid: workload.uid.clone(),
            namespace: workload.namespace.clone(),
            name: workload.name().to_owned(),
            workload: workload.workload_name.clone(),
            node: workload.node.clone(),
            identity: route::identity(workload).ok().map(|it| it.to_string()),
            addresses: workload.addresses.to_vec(),
            in_mesh: workload.tunnel == Tunnel::Hbone,
            healthy: workload.healthy,
            waypoint: workload.waypoint.as_deref().map(|it| Name(it).to_string()),
        }
    }
}

/// What becomes of it.
///
/// # Errors
/// What cannot be told, for the person who asked.
pub(crate) fn explain<'a>(view: &View<'a>, question: &Question) -> Result<Explained<'a>, String> {
    let caller = Caller::of(view, &question.src)?;
    let meant = Meant::of(view, &caller, &question.dst, question.port)?;
    let mut explained = Explained {
        node: view.node,
        protocol: question.protocol,
        source: None,
        destination: None,
    };
    let arriving = if question.side == Some(Side::Destination) {
        Some(straight(view, &caller, &meant, question)?)
    } else {
        let (source, arriving) = leaving(view, &caller, &meant, question.protocol);
        explained.source = Some(source);
        arriving.filter(|_| question.side.is_none())
    };
    explained.destination = arriving.map(|arriving| Destination::of(view, &arriving));
    Ok(explained)
}

/// It has come to the workload at that address, whichever way.
fn straight(
    view: &View<'_>,
    caller: &Caller,
    meant: &Meant,
    question: &Question,
) -> Result<Arriving, String> {
    let at = meant.destination;
    let workload = view.snapshot.workload_at(caller.network(view), at.ip());
    let workload = workload.ok_or_else(|| format!("dst: no workload is known at {}", at.ip()))?;
    let spoken = question.protocol;
    let speaks = |it: &Workload| it.tunnel == Tunnel::Hbone && spoken.is_carried(it);
    let tunnels = |it: &&Arc<Workload>| match question.by {
        Some(by) => by == By::Tunnel,
        None => speaks(it) && speaks(workload),
    };
    let proven = caller.workload.as_ref().filter(tunnels);
    Ok(Arriving {
        workload: workload.clone(),
        at,
        identity: proven.and_then(|it| route::identity(it).ok()),
        from: caller.address(at),
        spoken,
    })
}
