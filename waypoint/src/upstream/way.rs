//! Pure: how an endpoint is reached.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hbone::{Identity, IdentityError};
use mesh::{Service, Workload};

use super::tls::Tls;

/// Port of the tunnel listener in every pod of the mesh.
const HBONE_PORT: u16 = 15008;

/// An endpoint and how it is reached.
#[derive(Debug, Clone)]
pub struct Way {
    /// Who it is; none outside the mesh.
    pub workload: Option<Arc<Workload>>,
    /// Whose endpoint it is.
    service: Option<Arc<Service>>,
    to: Place,
    tunnel: bool,
    /// What is spoken over the connection before anything else.
    over: Over,
}

/// What is spoken over a connection before anything else.
#[derive(Debug, Clone, Default)]
pub struct Over {
    /// A PROXY header of that version says that the client, the first, has connected to the second.
    pub proxy: Option<(u8, SocketAddr, SocketAddr)>,
    /// TLS, and whom the client asked for.
    pub tls: Option<(Arc<Tls>, Option<Box<str>>)>,
}

#[derive(Debug, Clone)]
enum Place {
    Address(SocketAddr),
    /// To be looked up.
    Name(Arc<str>, u16),
}

/// By what connections are shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    uid: Option<Arc<str>>,
    ip: Option<IpAddr>,
    port: u16,
    /// Of the client, if the endpoint is told.
    client: Option<SocketAddr>,
    tls: Option<(u64, Option<Box<str>>)>,
}

/// Why an endpoint cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// It has none.
    #[error("workload {0} has no address")]
    NoAddress(Arc<str>),
    /// Only a gateway to another network leads there.
    #[error("workload {0} is on another network, and waypoints do not call through gateways")]
    OtherNetwork(Arc<str>),
    /// Its names do not make an identity, so it could not prove who it is.
    #[error("workload {0} has no valid identity: {1}")]
    NoIdentity(Arc<str>, IdentityError),
}

impl Way {
    /// To an endpoint of `service`, at an address and port of its own.
    ///
    /// # Errors
    /// When it cannot be reached from here.
    pub fn to(
        workload: &Arc<Workload>,
        address: Option<IpAddr>,
        port: u16,
        service: Option<&Arc<Service>>,
    ) -> Result<Self, NoWay> {
        let to = match (address, workload.hostname()) {
            (Some(ip), _) => Place::Address(SocketAddr::new(ip, port)),
            (None, Some(name)) => Place::Name(name.clone(), port),
            (None, None) if workload.network_gateway.is_some() => {
                return Err(NoWay::OtherNetwork(workload.uid.clone()));
            }
            (None, None) => return Err(NoWay::NoAddress(workload.uid.clone())),
        };
        Ok(Self {
            workload: Some(workload.clone()),
            service: service.cloned(),
            tunnel: matches!(to, Place::Address(_)) && workload.tunnel == mesh::Tunnel::Hbone,
            to,
            over: Over::default(),
        })
    }

    /// To a place of which nothing is known.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            workload: None,
            service: None,
            to: Place::Address(address),
            tunnel: false,
            over: Over::default(),
        }
    }

    /// With something spoken over it first.
    pub fn over(mut self, over: Over) -> Self {
        self.over = over;
        self
    }

    /// What is spoken over it first.
    pub(super) fn spoken(&self) -> &Over {
        &self.over
    }

    /// Whether nothing is.
    pub fn is_bare(&self) -> bool {
        self.over.proxy.is_none() && self.over.tls.is_none()
    }

    /// Whether it is reached through the mesh.
    pub fn is_tunnel(&self) -> bool {
        self.tunnel
    }

    /// Its address, if it need not be looked up.
    pub fn known_address(&self) -> Option<SocketAddr> {
        match self.to {
            Place::Address(address) => Some(address),
            Place::Name(..) => None,
        }
    }

    /// The port of its tunnels.
    pub(super) fn hop(address: SocketAddr) -> SocketAddr {
        SocketAddr::new(address.ip(), HBONE_PORT)
    }

    /// Who it must prove to be; none if it is not reached through the mesh.
    ///
    /// # Errors
    /// When its names do not make an identity.
    pub fn identity(&self) -> Result<Option<Identity>, NoWay> {
        let workload = self.workload.as_ref().filter(|_| self.tunnel);
        workload.map(|workload| identity(workload)).transpose()
    }

    /// Who may answer, sorted: the endpoint itself, and whom its service vouches for.
    pub(super) fn expected(&self) -> Result<Vec<Identity>, NoWay> {
        let mut expected: Vec<_> = self.identity()?.into_iter().collect();
        let vouched = self.service.as_ref();
        let vouched = vouched.map_or(&[][..], |service| &service.subject_alt_names);
        expected.extend(vouched.iter().filter_map(|name| name.parse().ok()));
        expected.sort_unstable();
        expected.dedup();
        Ok(expected)
    }

    pub(super) async fn address(&self) -> io::Result<SocketAddr> {
        match &self.to {
            Place::Address(address) => Ok(*address),
            Place::Name(name, port) => {
                let mut found = tokio::net::lookup_host((&**name, *port)).await?;
                let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                found.next().ok_or_else(none)
            }
        }
    }

    pub(super) fn key(&self) -> Key {
        let (ip, port) = match &self.to {
            Place::Address(address) => (Some(address.ip()), address.port()),
            Place::Name(_, port) => (None, *port),
        };
        Key {
            uid: self.workload.as_ref().map(|workload| workload.uid.clone()),
            ip,
            port,
            client: self.over.proxy.map(|(_, client, _)| client),
            tls: self
                .over
                .tls
                .as_ref()
                .map(|(tls, host)| (tls.number(), host.clone())),
        }
    }
}

fn identity(workload: &Workload) -> Result<Identity, NoWay> {
    let share = |own: &Arc<str>, meant: &str| match **own == *meant {
        true => own.clone(),
        false => meant.into(),
    };
    let (trust_domain, namespace, account) = workload.identity_parts();
    let own = Identity::shared(
        share(&workload.trust_domain, trust_domain),
        share(&workload.namespace, namespace),
        share(&workload.service_account, account),
    );
    own.map_err(|error| NoWay::NoIdentity(workload.uid.clone(), error))
}
