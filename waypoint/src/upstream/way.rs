//! Pure: how an endpoint is reached.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hbone::{Identity, IdentityError};
use mesh::{GatewayAddress, GatewayTarget, NamespacedHost, NoEndpoint, Service, Workload};

use super::tls::Tls;
use crate::limit::Gates;

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
    /// For a connection, if that was said.
    patience: Option<Duration>,
    /// What is said of its connections.
    bounds: Option<Arc<Gates>>,
    /// Where requests may have to wait for one of them: whether this one has none yet.
    waits: Option<Arc<AtomicBool>>,
}

/// What is spoken over a connection before anything else.
#[derive(Debug, Clone, Default)]
pub struct Over {
    /// A PROXY header of that version says that the client, the first, has connected to the second.
    pub proxy: Option<(u8, SocketAddr, SocketAddr)>,
    /// TLS, and whom the client asked for.
    pub tls: Option<(Arc<Tls>, Option<Box<str>>)>,
}

/// Where something is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Address(SocketAddr),
    /// To be looked up.
    Name(Arc<str>, u16),
    /// With whomever the gateway of another network leads to, who serves this port of the service there.
    Abroad(Arc<Abroad>),
}

impl Place {
    pub(super) async fn address(&self) -> io::Result<SocketAddr> {
        let none = |words| io::Error::new(io::ErrorKind::NotFound, words);
        match self {
            Self::Address(address) => Ok(*address),
            Self::Name(name, port) => {
                let mut found = tokio::net::lookup_host((&**name, *port)).await?;
                found.next().ok_or_else(|| none("the name has no address"))
            }
            Self::Abroad(_) => Err(none("it has an address in its own network only")),
        }
    }
}

/// A service as the gateway of another network is asked for it.
#[derive(Debug)]
pub(super) struct Abroad {
    pub(super) gateway: Arc<GatewayAddress>,
    pub(super) service: Arc<Service>,
    pub(super) port: u16,
    /// What stands in discovery for all who serve it there.
    workload: Arc<Workload>,
}

/// By what connections are shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    uid: Option<Arc<str>>,
    ip: Option<IpAddr>,
    port: u16,
    /// Whoever has come into the mesh is not spoken to over what was there before, past his own proxy.
    tunnel: bool,
    /// Who must answer is told by it; the rest of that is in the uid.
    account: Option<Arc<str>>,
    /// What a gateway is asked for.
    asked: Option<NamespacedHost>,
    /// Of the client, if the endpoint is told.
    client: Option<SocketAddr>,
    tls: Option<(u64, Option<Box<str>>)>,
    /// Of a service of whose connections something is said: they are its own.
    gates: Option<u64>,
}

/// Why an endpoint cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// It has none.
    #[error("workload {0} has no address")]
    NoAddress(Arc<str>),
    /// A gateway is asked for services.
    #[error("workload {0} is on another network, where gateways lead to services only")]
    OtherNetwork(Arc<str>),
    /// The gateway of another network is named but not known.
    #[error("gateway {gateway} not found; {workload} can be reached in no other way")]
    GatewayNotFound {
        /// Service or address.
        gateway: Arc<GatewayAddress>,
        /// Who is behind it.
        workload: Arc<str>,
    },
    /// The gateway of another network has nobody to answer.
    #[error("gateway {gateway} has no healthy pod: {why}")]
    GatewayNotReady {
        /// Service or address.
        gateway: Arc<GatewayAddress>,
        /// What each of its pods lacked.
        why: NoEndpoint,
    },
    /// Whoever is behind a gateway is believed only if the service vouches for it.
    #[error(
        "service {0} names nobody (subject_alt_names) who could answer for it on another network"
    )]
    NobodyVouched(NamespacedHost),
    /// Its names do not make an identity, so it could not prove who it is.
    #[error("workload {0} has no valid identity: {1}")]
    NoIdentity(Arc<str>, IdentityError),
}

impl Way {
    /// To an endpoint of `service`, which was asked for that port of its, at an address and port of the endpoint's own.
    ///
    /// # Errors
    /// When it cannot be reached from here.
    pub fn to(
        workload: &Arc<Workload>,
        address: Option<IpAddr>,
        port: u16,
        service: Option<(&Arc<Service>, u16)>,
    ) -> Result<Self, NoWay> {
        let uid = || workload.uid.clone();
        let to = match (address, workload.hostname()) {
            (Some(ip), _) => Place::Address(SocketAddr::new(ip, port)),
            (None, Some(name)) => Place::Name(name.clone(), port),
            (None, None) => {
                let gateway = workload.network_gateway.as_ref();
                let gateway = gateway.ok_or_else(|| NoWay::NoAddress(uid()))?;
                let (service, asked) = service.ok_or_else(|| NoWay::OtherNetwork(uid()))?;
                Place::Abroad(Arc::new(Abroad {
                    gateway: gateway.clone(),
                    service: service.clone(),
                    port: asked,
                    workload: workload.clone(),
                }))
            }
        };
        let tunnel = match to {
            Place::Address(_) => workload.tunnel == mesh::Tunnel::Hbone,
            Place::Name(..) => false,
            Place::Abroad(_) => true,
        };
        Ok(Self {
            workload: Some(workload.clone()),
            service: service.map(|(service, _)| service.clone()),
            tunnel,
            to,
            over: Over::default(),
            patience: None,
            bounds: None,
            waits: None,
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
            patience: None,
            bounds: None,
            waits: None,
        }
    }

    /// With something spoken over it first.
    pub fn over(mut self, over: Over) -> Self {
        self.over = over;
        self
    }

    /// With so long for a connection; none: as long as is usual.
    pub fn within(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }

    /// With what is said of connections of its service, if anything is.
    pub fn bound_by(mut self, gates: &Arc<Gates>) -> Self {
        self.bounds = gates.binds().then(|| gates.clone());
        self.waits = gates.counts().then(|| Arc::new(AtomicBool::new(true)));
        self
    }

    /// Until there is a connection, or one may be made. That somebody waits is known also when he has given up.
    pub(super) async fn waiting<T>(&self, turn: impl Future<Output = T>) -> T {
        let note = |waits: bool| {
            if let Some(noted) = &self.waits {
                noted.store(waits, Relaxed);
            }
        };
        note(true);
        let had = turn.await;
        note(false);
        had
    }

    /// Whether it had to wait for a connection and has had none: the endpoint knows nothing of it.
    pub(crate) fn is_waiting(&self) -> bool {
        let waits = self.waits.as_ref();
        waits.is_some_and(|waits| waits.load(Relaxed))
    }

    /// The same, for somebody who looks at it later.
    pub(crate) fn waits(&self) -> Option<Arc<AtomicBool>> {
        self.waits.clone()
    }

    /// This.
    pub(super) fn bounds(&self) -> Option<&Arc<Gates>> {
        self.bounds.as_ref()
    }

    /// So long.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.patience
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

    /// Its address, or that of the gateway before it, if it need not be looked up.
    pub fn known_address(&self) -> Option<SocketAddr> {
        match &self.to {
            Place::Address(address) => Some(*address),
            Place::Name(..) => None,
            Place::Abroad(abroad) => match &abroad.gateway.target {
                GatewayTarget::Address(_, ip) => {
                    Some(SocketAddr::new(*ip, abroad.gateway.hbone_port))
                }
                GatewayTarget::Host(_) => None,
            },
        }
    }

    /// What the gateway of another network is asked for, if one leads there.
    pub(super) fn abroad(&self) -> Option<&Arc<Abroad>> {
        match &self.to {
            Place::Abroad(abroad) => Some(abroad),
            Place::Address(_) | Place::Name(..) => None,
        }
    }

    /// The port of its tunnels.
    pub(super) fn hop(address: SocketAddr) -> SocketAddr {
        SocketAddr::new(address.ip(), HBONE_PORT)
    }

    /// Who it must prove to be; none if it is not reached through the mesh, or if it may be one of several behind a gateway.
    ///
    /// # Errors
    /// When its names do not make an identity.
    pub fn identity(&self) -> Result<Option<Identity>, NoWay> {
        let single = self.tunnel && self.abroad().is_none();
        let workload = self.workload.as_ref().filter(|_| single);
        workload.map(|workload| identity(workload)).transpose()
    }

    /// Who may answer, sorted: the endpoint itself, and whom its service vouches for.
    pub(super) fn expected(&self) -> Result<Vec<Identity>, NoWay> {
        let own = self.identity()?;
        Ok(sorted(
            own.into_iter()
                .chain(self.service.iter().flat_map(vouched_for)),
        ))
    }

    pub(super) async fn address(&self) -> io::Result<SocketAddr> {
        self.to.address().await
    }

    pub(super) fn key(&self) -> Key {
        let (ip, port) = match &self.to {
            Place::Address(address) => (Some(address.ip()), address.port()),
            Place::Name(_, port) => (None, *port),
            Place::Abroad(abroad) => (None, abroad.port),
        };
        Key {
            uid: self.workload.as_ref().map(|workload| workload.uid.clone()),
            ip,
            port,
            tunnel: self.tunnel,
            account: self.workload.as_ref().map(|it| it.service_account.clone()),
            // One workload may stand for several services there.
            asked: self.abroad().map(|abroad| abroad.service.key()),
            client: self.over.proxy.map(|(_, client, _)| client),
            tls: self
                .over
                .tls
                .as_ref()
                .map(|(tls, host)| (tls.number(), host.clone())),
            gates: self.bounds.as_ref().map(|gates| gates.number),
        }
    }
}

impl Abroad {
    /// Who may answer there, sorted: whom the service vouches for. The gateway may lead to any of them.
    ///
    /// # Errors
    /// When that is nobody.
    pub(super) fn expected(&self) -> Result<Vec<Identity>, NoWay> {
        let expected = sorted(vouched_for(&self.service));
        match expected.is_empty() {
            true => Err(NoWay::NobodyVouched(self.service.key())),
            false => Ok(expected),
        }
    }

    /// The uid under which discovery has a gateway that is no service, but a place with a name.
    pub(super) fn door(&self) -> Arc<str> {
        let host = match &self.gateway.target {
            GatewayTarget::Host(named) => named.host.to_string(),
            GatewayTarget::Address(_, ip) => ip.to_string(),
        };
        let (network, port) = (&self.workload.network, self.gateway.hbone_port);
        format!("NetworkGateway/{network}/{host}/{port}").into()
    }

    /// There is nobody of that name.
    pub(super) fn not_found(&self) -> NoWay {
        NoWay::GatewayNotFound {
            gateway: self.gateway.clone(),
            workload: self.workload.uid.clone(),
        }
    }

    /// There is nobody to answer.
    pub(super) fn not_ready(&self, why: NoEndpoint) -> NoWay {
        NoWay::GatewayNotReady {
            gateway: self.gateway.clone(),
            why,
        }
    }
}

/// Whom a service vouches for.
pub(super) fn vouched_for(service: &Arc<Service>) -> impl Iterator<Item = Identity> {
    let names = service.subject_alt_names.iter();
    names.filter_map(|name| name.parse().ok())
}

/// As pools share connections by it.
pub(super) fn sorted(identities: impl Iterator<Item = Identity>) -> Vec<Identity> {
    let mut identities: Vec<_> = identities.collect();
    identities.sort_unstable();
    identities.dedup();
    identities
}

pub(super) fn identity(workload: &Workload) -> Result<Identity, NoWay> {
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

/// The same and, of whoever is of a mesh with several names, those whom its other names make of it. Sorted.
pub(super) fn by_all_names(expected: Vec<Identity>, names: &[String]) -> Vec<Identity> {
    if names.is_empty() {
        return expected;
    }
    let of_the_mesh = |one: &&Identity| names.iter().any(|name| **name == *one.trust_domain());
    let under = |one: &Identity, name: &str| {
        let (namespace, account) = (one.namespace(), one.service_account());
        Identity::new(name, namespace, account).ok()
    };
    let members = expected.iter().filter(of_the_mesh);
    let others = members.flat_map(|one| names.iter().filter_map(move |name| under(one, name)));
    let others: Vec<_> = others.collect();
    sorted(expected.into_iter().chain(others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_the_mesh_may_have_any_of_its_names_and_nobody_else_has() {
        let named = |names: &[&str]| -> Vec<Identity> {
            let one = |name: &&str| format!("spiffe://{name}/ns/shop/sa/web").parse().unwrap();
            names.iter().map(one).collect()
        };
        let names = ["new.org".to_owned(), "old.org".to_owned()];
        for (expected, believed) in [
            (&["new.org"][..], &["new.org", "old.org"][..]),
            (&["old.org"], &["new.org", "old.org"]),
            (&["far.org"], &["far.org"]),
            (&["far.org", "new.org"], &["far.org", "new.org", "old.org"]),
        ] {
            assert_eq!(by_all_names(named(expected), &names), named(believed));
        }
        assert_eq!(by_all_names(named(&["old.org"]), &[]), named(&["old.org"]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_while_he_waits_is_known_to_have_waited() {
        let gates = |connections| {
            Arc::new(Gates::compile(Some(&api::waypoint::Limits {
                connections,
                ..Default::default()
            })))
        };
        let way = |connections| {
            let at = SocketAddr::from(([10, 0, 0, 1], 80));
            Way::plain(at).bound_by(&gates(connections))
        };
        let (few, many) = (way(1), way(0));
        for way in [&few, &many] {
            let turn = way.waiting(std::future::pending::<()>());
            let given_up = tokio::time::timeout(Duration::from_secs(1), turn).await;
            assert!(given_up.is_err());
        }
        assert!(few.is_waiting());
        assert!(!many.is_waiting(), "nobody waits where all may have one");
        few.waiting(async {}).await;
        assert!(!few.is_waiting(), "it has one");
    }

    #[test]
    fn who_comes_into_the_mesh_or_runs_as_another_is_spoken_to_over_new_connections() {
        use api::workload::TunnelProtocol;

        let key = |tunnel: TunnelProtocol, account: &str| {
            let workload = api::workload::Workload {
                uid: "cluster//Pod/shop/web".to_owned(),
                name: "web".to_owned(),
                namespace: "shop".to_owned(),
                service_account: account.to_owned(),
                addresses: vec![vec![10, 0, 0, 1].into()],
                tunnel_protocol: tunnel.into(),
                ..Default::default()
            };
            let workload = Arc::new(Workload::try_from(workload).unwrap());
            let ip = Some(IpAddr::from([10, 0, 0, 1]));
            Way::to(&workload, ip, 8080, None).unwrap().key()
        };
        let plain = key(TunnelProtocol::None, "web");
        assert_eq!(plain, key(TunnelProtocol::None, "web"));
        assert_ne!(plain, key(TunnelProtocol::Hbone, "web"));
        assert_ne!(plain, key(TunnelProtocol::None, "other"));
    }
}
