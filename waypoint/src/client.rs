//! Who asks.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::Identity;
use mesh::Workload;

/// The other end of a connection, known when it arrives and the same for all its requests.
#[derive(Debug, Clone)]
pub struct Client {
    /// Proven by mutual TLS. None at a gateway's own ports.
    pub identity: Option<Identity>,
    /// Its own address: of the app, as its node's ztunnel says; at a gateway's ports of the socket.
    pub address: SocketAddr,
    /// Where the connection itself comes from.
    pub peer: IpAddr,
    /// Who it is in the mesh, if that is known.
    pub workload: Option<Arc<Workload>>,
    /// What its proxy says of it; for reports only, never for a decision about access.
    pub said: Baggage,
}

/// `baggage` of a CONNECT (wire.md 1.2), for reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.namespace.name`
    pub namespace: Option<Box<str>>,
    /// `k8s.deployment.name`, `k8s.pod.name` …: the workload.
    pub workload: Option<Box<str>>,
    /// `service.name`: the canonical service.
    pub service: Option<Box<str>>,
    /// `service.version`: the canonical revision.
    pub revision: Option<Box<str>>,
    /// `app.name`
    pub app: Option<Box<str>>,
    /// `app.version`
    pub version: Option<Box<str>>,
    /// `k8s.cluster.name`
    pub cluster: Option<Box<str>>,
}

impl Client {
    /// The namespace it runs in: proven, else looked up.
    pub fn namespace(&self) -> Option<&str> {
        let proven = self.identity.as_ref().map(Identity::namespace);
        proven.or_else(|| self.workload.as_ref().map(|workload| &*workload.namespace))
    }
}
