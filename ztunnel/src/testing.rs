//! Small meshes for the unit tests of pure decisions, made of the messages a control plane would send.

use std::net::IpAddr;
use std::sync::Arc;

use api::workload as wire;
use mesh::{Mesh, Snapshot, Update};
use prost::Message as _;

/// A snapshot of these resources; all of them must be acceptable.
pub(crate) fn snapshot(fill: impl FnOnce(&mut Update)) -> Arc<Snapshot> {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    fill(&mut update);
    assert_eq!(writer.apply(update), []);
    mesh.load().clone()
}

/// A captured pod of namespace `default` whose service account has its name; the uid is the name too.
pub(crate) fn pod(name: &str, ips: &[&str]) -> wire::Workload {
    wire::Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "default".into(),
        service_account: name.into(),
        addresses: ips.iter().map(|ip| bytes_of(ip)).collect(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        node: "node-1".into(),
        ..Default::default()
    }
}

/// The same, as an endpoint of `default/<host>` with these (service port, target port).
pub(crate) fn endpoint(
    name: &str,
    ips: &[&str],
    host: &str,
    ports: &[(u32, u32)],
) -> wire::Workload {
    let mut pod = pod(name, ips);
    pod.services.insert(
        format!("default/{host}"),
        wire::PortList {
            ports: ports.iter().map(port).collect(),
        },
    );
    pod
}

/// The extension that says what becomes of a workload's connections to who is unknown.
pub(crate) fn egress(mode: api::egress::egress::Mode, set_by: &str) -> wire::Extension {
    let said = api::egress::Egress {
        mode: mode.into(),
        set_by: set_by.into(),
    };
    wire::Extension {
        name: api::EGRESS_EXTENSION.into(),
        config: Some(prost_types::Any {
            type_url: api::EGRESS_TYPE.into(),
            value: said.encode_to_vec(),
        }),
    }
}

/// A service of namespace `default` at these VIPs.
pub(crate) fn service(host: &str, vips: &[&str], ports: &[(u32, u32)]) -> wire::Service {
    wire::Service {
        name: host.split('.').next().unwrap_or_default().into(),
        namespace: "default".into(),
        hostname: host.into(),
        addresses: vips.iter().map(|vip| address("", vip)).collect(),
        ports: ports.iter().map(port).collect(),
        canonical: true,
        ..Default::default()
    }
}

/// A waypoint named by service.
pub(crate) fn waypoint_host(host: &str) -> Option<wire::GatewayAddress> {
    let named = wire::NamespacedHostname {
        namespace: "default".into(),
        hostname: host.into(),
    };
    gateway(wire::gateway_address::Destination::Hostname(named))
}

/// A waypoint named by address.
pub(crate) fn waypoint_ip(ip: &str) -> Option<wire::GatewayAddress> {
    gateway(wire::gateway_address::Destination::Address(address("", ip)))
}

fn gateway(destination: wire::gateway_address::Destination) -> Option<wire::GatewayAddress> {
    Some(wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: 15008,
    })
}

/// An address or, with a length, a range of a network.
pub(crate) fn address(network: &str, vip: &str) -> wire::NetworkAddress {
    let (ip, length) = match vip.split_once('/') {
        Some((ip, length)) => (ip, length.parse().ok()),
        None => (vip, None),
    };
    wire::NetworkAddress {
        network: network.into(),
        address: bytes_of(ip),
        length,
    }
}

fn port(&(service_port, target_port): &(u32, u32)) -> wire::Port {
    wire::Port {
        service_port,
        target_port,
        app_protocol: 0,
    }
}

fn bytes_of(ip: &str) -> bytes::Bytes {
    match ip.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}
