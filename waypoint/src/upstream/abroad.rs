//! Whoever is on another network is reached through the gateway of that network, as ztunnels do it (docs/wire.md,
//! "Data-path rules").
//!
//! 1. who answers for the gateway; discovery is asked, where it has not told of it yet   ([`Gateways::front`])
//! 2. a tunnel to that one, which is asked for the service by its name
//! 3. inside of it a second one, to whomever it leads to, for whom the service must vouch  ([`Upstreams::through`])
//!
//! So a gateway sees who calls and which service, and nothing of what is said.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hbone::{Authority, Certificates, Connect, Destination, Identity, OpenError, Tunnel};
use mesh::{Client, GatewayTarget, Locality, Network, Snapshot, Workload};
use ops::random::random;

use super::silent::Silent;
use super::way::{Abroad, Place, by_all_names, identity, sorted, vouched_for};
use super::{CONNECT, Failed, NoWay, Upstreams, dial};
use crate::discovery::{Clients, alias};

/// The gateways of other networks, as discovery has them.
pub struct Gateways {
    clients: Arc<Clients>,
    certificates: Arc<Certificates>,
    /// Ours.
    network: Network,
    namespace: Box<str>,
    silent: Silent,
}

/// One pod of a gateway.
#[derive(Debug)]
struct Front {
    at: Place,
    /// Who may answer there, sorted.
    expected: Vec<Identity>,
}

impl Gateways {
    /// For a proxy of that network and namespace. `clients` asks for what is not known.
    pub fn new(
        clients: Arc<Clients>,
        certificates: Arc<Certificates>,
        (network, namespace): (&str, &str),
    ) -> Self {
        Self {
            clients,
            certificates,
            network: Network::new(network),
            namespace: namespace.into(),
            silent: Silent::default(),
        }
    }

    /// Who answers for the gateway now.
    async fn front(&self, abroad: &Abroad) -> Result<Front, NoWay> {
        let names = match &abroad.gateway.target {
            GatewayTarget::Host(host) => vec![host.to_string().into(), abroad.door()],
            GatewayTarget::Address(network, ip) => vec![alias(network, *ip)],
        };
        let look = |snapshot: &Snapshot| match self.look(snapshot, abroad) {
            Err(NoWay::GatewayNotFound { .. }) => None,
            known => Some(known),
        };
        let known = self.clients.told_of(names, PATIENCE, look).await;
        known.unwrap_or_else(|| Err(abroad.not_found()))
    }

    fn look(&self, snapshot: &Snapshot, abroad: &Abroad) -> Result<Front, NoWay> {
        let gateway = &abroad.gateway;
        let alone = |workload: Option<&Arc<Workload>>, ip| {
            let workload = workload.ok_or_else(|| abroad.not_found())?;
            Ok(Front {
                at: place(ip, workload, gateway.hbone_port)?,
                expected: vec![identity(workload)?],
            })
        };
        let service = match &gateway.target {
            GatewayTarget::Host(host) => {
                let Some(service) = snapshot.service(&host.namespace, &host.host) else {
                    // Its load balancer has a name of its own.
                    let named = snapshot.workload_named(&host.namespace, &host.host);
                    return alone(named, None);
                };
                service
            }
            GatewayTarget::Address(network, ip) => {
                let Some(service) = snapshot.service_at(network, *ip, &self.namespace) else {
                    return alone(snapshot.workload_at(network, *ip), Some(*ip));
                };
                service
            }
        };
        // Which of its pods is nearest is not ours to tell: we are far from all of them.
        let own = Client {
            network: &self.network,
            locality: &NOWHERE,
            node: "",
            cluster: "",
            namespace: &self.namespace,
            ipv6: false,
        };
        let port = gateway.hbone_port;
        let silent = |ip| self.silent.is(SocketAddr::new(ip, port));
        let picked = mesh::pick_waypoint_but(snapshot, service, port, &own, random(), &|found| {
            found.address.is_some_and(silent)
        });
        let found = picked.map_err(|why| abroad.not_ready(why))?;
        let own = identity(&found.workload)?;
        Ok(Front {
            at: place(found.address, &found.workload, port)?,
            expected: sorted([own].into_iter().chain(vouched_for(service))),
        })
    }
}

/// At its address, or under its name.
fn place(ip: Option<IpAddr>, workload: &Workload, port: u16) -> Result<Place, NoWay> {
    match (ip, workload.hostname()) {
        (Some(ip), _) => Ok(Place::Address(SocketAddr::new(ip, port))),
        (None, Some(name)) => Ok(Place::Name(name.clone(), port)),
        (None, None) => Err(NoWay::NoAddress(workload.uid.clone())),
    }
}

impl Upstreams {
    /// A tunnel, inside that to the gateway, to whomever that one leads to.
    pub(super) async fn through(&self, abroad: &Abroad) -> Result<Tunnel, Failed> {
        let (gateways, expected) = (&self.gateways, abroad.expected()?);
        let expected = by_all_names(expected, &self.names);
        let front = gateways.front(abroad).await?;
        let found = tokio::time::timeout(CONNECT, front.at.address()).await;
        let found = found.map_err(|_| Failed::ConnectTimeout(CONNECT))?;
        let address = found.map_err(Failed::Connect)?;
        let own = self.own_address(address.ip());
        let destination = Destination {
            address,
            source_ip: own,
            source: self.identity.clone(),
            expected: by_all_names(front.expected, &self.names),
        };
        let authority = Authority::Host(abroad.service.hostname.to_string(), abroad.port);
        let connect = Connect {
            source: Some("waypoint"),
            ..Connect::to(authority)
        };
        let silent = &gateways.silent;
        let dial = move |to| silent.dialled(to, dial(own, to));
        let tunnels = &self.shard().tunnels;
        let outer = tunnels.open(&destination, dial, connect.clone()).await?;
        let certificate = gateways.certificates.of(&self.identity).await;
        let certificate = certificate.map_err(OpenError::from)?;
        let network = gateways.network.as_str();
        let connect = Connect {
            x_forwarded_network: Some(network.to_owned()).filter(|network| !network.is_empty()),
            ..connect
        };
        Ok(hbone::client::inside(outer, &certificate, &expected, &connect).await?)
    }
}

static NOWHERE: LazyLock<Locality> = LazyLock::new(Locality::default);
/// For the control plane to tell of a gateway that it was never asked for.
const PATIENCE: Duration = Duration::from_secs(1);
