//! Gateways and their classes.
//!
//! A waypoint is a Gateway that somebody names ([`super::waypoint`]); which program answers at its
//! address is not asked. A Gateway of class `istio-remote` is the door of another network: its
//! workloads are reached through it. One of class `istio-east-west` is the other side of such a door:
//! that of our own network, for others.

use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::labels;
use api::k8s::objects;
use api::waypoint::ForwardClientCert;
use api::workload::application_tunnel::Protocol;
use api::workload::{
    ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress, Workload,
    gateway_address::Destination,
};

use super::listener::{HBONE, Listener};
use super::pod::octets;
use super::{Labels, value};

/// What matters of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Name of its GatewayClass.
    pub class: Arc<str>,
    /// What it says of itself; its class says the rest.
    pub traits: Traits,
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Name of the Service through which it is reached.
    pub service: String,
    /// Account of its pods.
    pub account: String,
    /// Account of the pods of the gateway of another network, if it stands for one.
    pub remote_account: String,
    /// What apps behind it learn of their clients' certificates.
    pub client_cert: ForwardClientCert,
    /// The network it is the door of.
    pub network: Option<String>,
    /// `spec.addresses`.
    pub asked: Vec<Place>,
    /// `status.addresses`.
    pub reported: Vec<Place>,
}

/// What a Gateway or its class may say of waypoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Whose traffic it takes.
    pub serves: Option<Serves>,
    /// How connections are handed to its pods; `Some(None)`: as to any pod.
    pub binding: Option<Option<ApplicationTunnel>>,
}

/// What matters of a GatewayClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// `spec.controllerName`.
    pub controller: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// For Gateways that do not say themselves.
    pub traits: Traits,
}

/// Where a Gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an address.
    Ip(IpAddr),
    /// At a Service, by its host name.
    Host(String),
}

/// Whose traffic a waypoint takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serves {
    /// That to services.
    #[default]
    Services,
    /// That to workloads.
    Workloads,
    /// Both.
    All,
    /// None.
    Nobody,
    /// That of other networks: it is no waypoint.
    OtherNetworks,
    /// What is written there is none of these.
    Unknown(String),
}

/// Who looks after a Gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// We: a waypoint.
    Mesh,
    /// We: the gateway of our own network.
    EastWest,
    /// Nobody: a note that another network's gateway is there.
    Unmanaged,
    /// Somebody else, or nobody we know.
    Other,
}

/// The classes that exist without a GatewayClass, with their controllers.
pub(crate) const BUILT_IN: [(&str, &str); 3] = [
    ("istio-waypoint", MESH_CONTROLLER),
    ("istio-east-west", EAST_WEST_CONTROLLER),
    ("istio-remote", UNMANAGED_CONTROLLER),
];
/// Of waypoints.
pub(crate) const MESH_CONTROLLER: &str = "istio.io/mesh-controller";
const EAST_WEST_CONTROLLER: &str = "istio.io/eastwest-controller";
const UNMANAGED_CONTROLLER: &str = "istio.io/unmanaged-gateway";

impl Controller {
    /// Of the Gateways of a class.
    pub fn of(name: &str, class: Option<&Class>) -> Self {
        let built_in = || BUILT_IN.iter().find(|(known, _)| *known == name);
        let controller = match class {
            Some(class) => class.controller.as_str(),
            None => built_in().map_or("", |(_, controller)| controller),
        };
        match controller {
            MESH_CONTROLLER => Self::Mesh,
            EAST_WEST_CONTROLLER => Self::EastWest,
            UNMANAGED_CONTROLLER => Self::Unmanaged,
            _ => Self::Other,
        }
    }

    /// Whether its Gateways are deployed by us.
    pub fn deploys(self) -> bool {
        matches!(self, Self::Mesh | Self::EastWest)
    }
}

impl Class {
    /// Keeps what matters.
    pub fn read(class: &objects::GatewayClass) -> Self {
        Self {
            controller: class.spec.controller_name.clone(),
            generation: class.metadata.generation,
            traits: Traits::read(&class.metadata),
        }
    }
}

impl Gateway {
    /// Keeps what matters.
    pub fn read(gateway: &objects::Gateway) -> Self {
        let metadata = &gateway.metadata;
        let none = Labels::new();
        let own_labels = metadata.labels.as_ref().unwrap_or(&none);
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let name = metadata.name.as_deref().unwrap_or_default();
        let called = |annotation: &str| value(annotations, annotation).unwrap_or(name).to_owned();
        let asked = gateway.spec.addresses.iter().flatten();
        let reported = gateway
            .status
            .iter()
            .flat_map(|it| it.addresses.iter().flatten());
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or("default").into(),
            name: name.into(),
            generation: metadata.generation,
            class: gateway.spec.gateway_class_name.as_str().into(),
            traits: Traits::read(metadata),
            listeners: gateway.spec.listeners.iter().map(Listener::read).collect(),
            service: called(labels::GATEWAY_NAME_OVERRIDE),
            account: called(labels::GATEWAY_SERVICE_ACCOUNT),
            remote_account: value(annotations, labels::GATEWAY_SERVICE_ACCOUNT)
                .map_or_else(|| format!("{name}-istio-remote"), str::to_owned),
            client_cert: client_cert(annotations),
            network: value(own_labels, labels::NETWORK).map(str::to_owned),
            asked: asked
                .filter_map(|it| Place::read(it.r#type.as_deref(), it.value.as_deref()?))
                .collect(),
            reported: reported
                .filter_map(|it| Place::read(it.r#type.as_deref(), &it.value))
                .collect(),
        }
    }

    /// The listener that takes tunnels.
    pub fn tunnels(&self) -> Option<&Listener> {
        self.listeners.iter().find(|it| it.protocol == HBONE.1)
    }

    /// The ways to its pods as those see them who must reach another network through it.
    pub fn doors(&self, network: &str) -> impl Iterator<Item = (GatewayAddress, Workload)> {
        let port = self
            .tunnels()
            .map_or(u32::from(HBONE.0), |it| it.port.unsigned_abs());
        self.asked.iter().map(move |place| {
            let name = format!("NetworkGateway/{network}/{place}/{port}");
            let mut workload = Workload {
                uid: name.clone(),
                name,
                namespace: self.namespace.to_string(),
                network: network.to_owned(),
                service_account: self.remote_account.clone(),
                ..Workload::default()
            };
            match place {
                Place::Ip(ip) => workload.addresses = vec![octets(*ip)],
                Place::Host(host) => workload.hostname = host.clone(),
            }
            (place.address(&self.namespace, network, port), workload)
        })
    }
}

impl Traits {
    fn read(metadata: &objects::ObjectMeta) -> Self {
        let none = Labels::new();
        let serves = value(
            metadata.labels.as_ref().unwrap_or(&none),
            labels::WAYPOINT_FOR,
        );
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        Self {
            serves: serves.map(Serves::read),
            binding: value(annotations, labels::WAYPOINT_INBOUND_BINDING).map(binding),
        }
    }
}

/// What clients send themselves is never passed on; who they are, if asked for.
fn client_cert(annotations: &Labels) -> ForwardClientCert {
    match value(annotations, labels::XFCC_CLIENT_IDENTITY) {
        Some(text) if text.eq_ignore_ascii_case("true") => ForwardClientCert::SanitizeSet,
        _ => ForwardClientCert::Sanitize,
    }
}

/// `PROXY`, `PROXY/<port>` or `NONE`. What is none of these binds nothing.
fn binding(text: &str) -> Option<ApplicationTunnel> {
    let (protocol, port) = text.split_once('/').unwrap_or((text, "0"));
    (protocol == "PROXY").then_some(())?;
    Some(ApplicationTunnel {
        protocol: Protocol::Proxy.into(),
        port: port.parse::<u16>().ok()?.into(),
    })
}

impl Serves {
    fn read(text: &str) -> Self {
        match text {
            "service" => Self::Services,
            "workload" => Self::Workloads,
            "all" => Self::All,
            "none" => Self::Nobody,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

impl Place {
    /// `type` is IPAddress if left out. What is neither that nor Hostname is no place we know.
    fn read(r#type: Option<&str>, value: &str) -> Option<Self> {
        match r#type {
            None | Some("IPAddress") => value.parse().ok().map(Self::Ip),
            Some("Hostname") => Some(Self::Host(value.to_owned())),
            Some(_) => None,
        }
    }

    /// As proxies are told it.
    pub fn address(&self, namespace: &str, network: &str, port: u32) -> GatewayAddress {
        let destination = match self {
            Self::Ip(ip) => Destination::Address(NetworkAddress {
                network: network.to_owned(),
                address: octets(*ip),
                length: None,
            }),
            Self::Host(host) => Destination::Hostname(NamespacedHostname {
                namespace: namespace.to_owned(),
                hostname: host.clone(),
            }),
        };
        GatewayAddress {
            destination: Some(destination),
            hbone_mtls_port: port,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Host(host) => f.write_str(host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_names_a_protocol_and_perhaps_a_port() {
        let tunnel = |port| {
            Some(ApplicationTunnel {
                protocol: Protocol::Proxy.into(),
                port,
            })
        };
        for (text, expected) in [
            ("PROXY", tunnel(0)),
            ("PROXY/15088", tunnel(15088)),
            ("NONE", None),
            ("PROXY/99999", None),
            ("HTTP/80", None),
        ] {
            assert_eq!(binding(text), expected, "{text}");
        }
    }

    #[test]
    fn a_class_that_is_there_decides_who_looks_after_its_gateways() {
        let class = |controller: &str| Class {
            controller: controller.to_owned(),
            generation: None,
            traits: Traits::default(),
        };
        assert_eq!(Controller::of("istio-waypoint", None), Controller::Mesh);
        assert_eq!(Controller::of("istio-remote", None), Controller::Unmanaged);
        assert_eq!(
            Controller::of("istio-east-west", None),
            Controller::EastWest
        );
        assert_eq!(Controller::of("istio", None), Controller::Other);
        assert_eq!(
            Controller::of("ours", Some(&class(MESH_CONTROLLER))),
            Controller::Mesh
        );
        assert_eq!(
            Controller::of("istio-waypoint", Some(&class("x.y/z"))),
            Controller::Other
        );
    }
}
