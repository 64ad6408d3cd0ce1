//! Pure: what a CONNECT is for, and whether that is ours to serve.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::Authority;
use mesh::service::{AppProtocol, VipAddress};
use mesh::{Network, Port, Service, Snapshot, Workload};

use crate::compiled::{Front, Fronts};

/// What a connection is for.
#[derive(Debug, Clone)]
pub enum To {
    /// A service that we front.
    Service {
        /// Which.
        service: Arc<Service>,
        /// Its port.
        port: Port,
        /// The address that the client meant.
        address: SocketAddr,
    },
    /// A workload that we front.
    Workload {
        /// Which.
        workload: Arc<Workload>,
        /// The address that the client meant.
        address: SocketAddr,
    },
}

impl To {
    /// A port of a service, at the address that a client meant; its first one if it meant none.
    pub fn of(service: &Arc<Service>, port: Port, address: Option<SocketAddr>) -> Self {
        let first = service.vips.first().map(|vip| match vip.address {
            VipAddress::Ip(ip) => ip,
            VipAddress::Cidr(range) => range.addr(),
        });
        let first = first.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        Self::Service {
            service: service.clone(),
            port,
            address: address.unwrap_or(SocketAddr::new(first, port.service_port)),
        }
    }

    /// What is spoken there, as far as that is declared.
    pub fn protocol(&self) -> AppProtocol {
        match self {
            Self::Service { port, .. } => port.protocol,
            Self::Workload { .. } => AppProtocol::Unknown,
        }
    }

    /// The address that the client meant.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Service { address, .. } | Self::Workload { address, .. } => *address,
        }
    }

    /// The service's port, or the workload's.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } => port.service_port,
            Self::Workload { address, .. } => address.port(),
        }
    }

    /// The service, if it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }

    /// It as one of those we stand in front of, if it is.
    pub fn front<'a>(&self, fronts: &'a Fronts) -> Option<&'a Front> {
        match self {
            Self::Service { service, .. } => fronts.service(&service.key()),
            Self::Workload { workload, .. } => fronts.workload(&workload.uid),
        }
    }
}

/// Why a CONNECT is not for us.
#[derive(Debug, thiserror::Error)]
pub enum Misdirected {
    /// Nobody there is known.
    #[error("{0} is no service or workload that this waypoint has been told of")]
    Unknown(Authority),
    /// Somebody else's.
    #[error("{0} is not fronted by this waypoint")]
    NotOurs(Authority),
    /// There is no such port.
    #[error("{0} has no such port")]
    NoPort(Authority),
}

/// Ours is what the control plane has told us of together with its policies. That it names us is not enough: who reads the
/// one before the other would serve it without them.
pub(super) fn tell(
    network: &Network,
    snapshot: &Snapshot,
    fronts: &Fronts,
    authority: &Authority,
    namespace: &str,
) -> Result<(To, Front), Misdirected> {
    let (service, address) = match authority {
        Authority::Ip(address) => {
            let service = snapshot.service_at(network, address.ip(), namespace);
            (service, Some(*address))
        }
        Authority::Host(host, _) => (snapshot.service_for_host(host, namespace), None),
    };
    let not_ours = || Misdirected::NotOurs(authority.clone());
    if let Some(service) = service {
        let front = fronts.service(&service.key()).ok_or_else(not_ours)?;
        let port = service.port(authority.port());
        let port = *port.ok_or_else(|| Misdirected::NoPort(authority.clone()))?;
        return Ok((To::of(service, port, address), front.clone()));
    }
    let unknown = || Misdirected::Unknown(authority.clone());
    let address = address.ok_or_else(unknown)?;
    let workload = snapshot.workload_at(network, address.ip());
    let workload = workload.ok_or_else(unknown)?;
    let front = fronts.workload(&workload.uid).ok_or_else(not_ours)?;
    let to = To::Workload {
        workload: workload.clone(),
        address,
    };
    Ok((to, front.clone()))
}
