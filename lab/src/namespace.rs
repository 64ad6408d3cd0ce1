//! Kubernetes namespaces and services of a lab.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde_json::Value;

use crate::{lab::Shared, objects};

/// A Kubernetes namespace.
#[derive(Debug)]
pub struct Namespace<'a> {
    pub(crate) lab: &'a Shared,
    pub(crate) name: String,
}

impl Namespace<'_> {
    /// Exists, and its pods belong to the mesh.
    pub fn ambient(&self) -> Result<()> {
        self.lab.set_ambient(&self.name, true);
        self.lab.objects.set(&objects::namespace(
            &self.name,
            &[("istio.io/dataplane-mode", "ambient")],
        ))
    }

    /// Exists, its pods belong to the mesh, and it has these labels besides.
    pub fn labelled(&self, labels: &[(&str, &str)]) -> Result<()> {
        self.lab.set_ambient(&self.name, true);
        let labels = [&[("istio.io/dataplane-mode", "ambient")], labels].concat();
        self.lab
            .objects
            .set(&objects::namespace(&self.name, &labels))
    }

    /// Exists, its pods belong to the mesh, and its services are behind a waypoint of its own.
    pub fn behind(&self, waypoint: &str) -> Result<()> {
        self.lab.set_ambient(&self.name, true);
        self.lab.objects.set(&objects::namespace(
            &self.name,
            &[
                ("istio.io/dataplane-mode", "ambient"),
                ("istio.io/use-waypoint", waypoint),
            ],
        ))
    }

    /// Exists, and its pods do not belong to the mesh.
    pub fn plain(&self) -> Result<()> {
        self.lab.set_ambient(&self.name, false);
        self.lab.objects.set(&objects::namespace(&self.name, &[]))
    }
}

/// A service's addresses and name.
#[derive(Debug, Clone)]
pub struct Service {
    /// IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Fully qualified.
    pub host: String,
    /// Without labels.
    pub(crate) object: Value,
}

impl Service {
    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[0], port)
    }
}
