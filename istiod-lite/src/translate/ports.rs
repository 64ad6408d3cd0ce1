//! Ports: of a service, and where a workload serves them.

use std::collections::BTreeMap;

use api::k8s::istio::ServicePort as EntryPort;
use api::k8s::objects::{Pod, Service};
use api::workload::{AppProtocol, Port, PortList};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Unique in the service; may be empty if it is the only one.
    pub name: String,
    /// What clients dial.
    pub number: u32,
    /// Where it is served.
    pub target: Target,
    /// `TCP` or `UDP`, as a container port of the same name must have it.
    pub transport: String,
    /// What is spoken.
    pub protocol: AppProtocol,
}

/// Where a port is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The same port on every workload.
    Number(u32),
    /// The workload's own port of that name.
    Name(String),
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    name: String,
    number: u32,
    transport: String,
}

const TCP: &str = "TCP";

/// Of a Kubernetes Service.
pub fn of_service(service: &Service) -> Vec<ServicePort> {
    let ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    ports
        .map(|port| {
            let number = unsigned(port.port);
            let name = port.name.clone().unwrap_or_default();
            let target = match &port.target_port {
                Some(IntOrString::Int(target)) if *target > 0 => Target::Number(unsigned(*target)),
                Some(IntOrString::String(target)) if !target.is_empty() => {
                    Target::Name(target.clone())
                }
                _ => Target::Number(number),
            };
            let transport = port.protocol.clone().unwrap_or_else(|| TCP.into());
            let protocol = if transport == TCP {
                spoken(port.app_protocol.as_deref().unwrap_or(&name))
            } else {
                AppProtocol::Unknown
            };
            ServicePort {
                name,
                number,
                target,
                transport,
                protocol,
            }
        })
        .collect()
}

/// Of a ServiceEntry.
pub fn of_entry(ports: &[EntryPort]) -> Vec<ServicePort> {
    ports
        .iter()
        .map(|port| {
            let target = if port.target_port == 0 {
                port.number
            } else {
                port.target_port
            };
            let named = if port.protocol.is_empty() {
                &port.name
            } else {
                &port.protocol
            };
            ServicePort {
                name: port.name.clone(),
                number: port.number,
                target: Target::Number(target),
                transport: TCP.into(),
                protocol: spoken(named),
            }
        })
        .collect()
}

/// The named ports of a pod's containers, side containers included.
pub fn of_pod(pod: &Pod) -> Vec<ContainerPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let containers = spec.containers.iter().chain(
        spec.init_containers
            .iter()
            .flatten()
            .filter(|container| container.restart_policy.as_deref() == Some("Always")),
    );
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let transport = port.protocol.clone().unwrap_or_else(|| TCP.into());
            Some(ContainerPort {
                name: port.name.clone()?,
                number: unsigned(port.container_port),
                transport,
            })
        })
        .collect()
}

/// As a service resource lists them. A target of 0 is for the workload to say.
pub fn listed(ports: &[ServicePort]) -> Vec<Port> {
    ports
        .iter()
        .map(|port| Port {
            service_port: port.number,
            target_port: match port.target {
                Target::Number(target) => target,
                Target::Name(_) => 0,
            },
            app_protocol: port.protocol.into(),
        })
        .collect()
}

/// Where a pod serves them. A named port that it lacks is left out.
pub fn on_pod(ports: &[ServicePort], pod: &[ContainerPort]) -> PortList {
    on(ports, |port| match &port.target {
        Target::Number(target) => Some(*target),
        Target::Name(name) => pod
            .iter()
            .find(|own| own.name == *name && own.transport == port.transport)
            .map(|own| own.number),
    })
}

/// Where a WorkloadEntry, or an inline endpoint, serves them: it may move a port by the port's
/// name, or by the name of its target.
pub fn on_endpoint(ports: &[ServicePort], own: &BTreeMap<String, u32>) -> PortList {
    on(ports, |port| match &port.target {
        _ if own.contains_key(&port.name) => own.get(&port.name).copied(),
        Target::Number(target) => Some(*target),
        Target::Name(name) => own.get(name).copied(),
    })
}

/// Where an endpoint of an EndpointSlice serves them: the slice lists them by name.
pub fn on_slice(ports: &[ServicePort], slice: &[(String, u32)]) -> PortList {
    on(ports, |port| {
        slice
            .iter()
            .find(|(name, _)| *name == port.name)
            .map(|(_, number)| *number)
    })
}

fn on(ports: &[ServicePort], target: impl Fn(&ServicePort) -> Option<u32>) -> PortList {
    let ports = ports.iter().filter_map(|port| {
        Some(Port {
            service_port: port.number,
            target_port: target(port)?,
            ..Port::default()
        })
    });
    PortList {
        ports: ports.collect(),
    }
}

/// What a port speaks, by its `appProtocol`, its protocol, or the first part of its name.
fn spoken(text: &str) -> AppProtocol {
    let text = text.to_ascii_lowercase();
    match text.as_str() {
        "kubernetes.io/h2c" => return AppProtocol::Http2,
        "kubernetes.io/ws" => return AppProtocol::Http11,
        "kubernetes.io/wss" => return AppProtocol::Tls,
        _ => {}
    }
    match text.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::workload::AppProtocol;

    use super::{ContainerPort, ServicePort, Target, on_endpoint, on_pod, spoken};

    fn named(name: &str, number: u32, target: &str) -> ServicePort {
        ServicePort {
            name: name.into(),
            number,
            target: Target::Name(target.into()),
            transport: "TCP".into(),
            protocol: AppProtocol::Unknown,
        }
    }

    fn pairs(list: &api::workload::PortList) -> Vec<(u32, u32)> {
        list.ports
            .iter()
            .map(|port| (port.service_port, port.target_port))
            .collect()
    }

    #[test]
    fn names_and_protocols_tell_what_is_spoken_whatever_their_case() {
        for (text, expected) in [
            ("HTTP", AppProtocol::Http11),
            ("http-web", AppProtocol::Http11),
            ("grpc-web", AppProtocol::Grpc),
            ("Kubernetes.io/WSS", AppProtocol::Tls),
            ("httpx", AppProtocol::Unknown),
            ("", AppProtocol::Unknown),
        ] {
            assert_eq!(spoken(text), expected, "{text}");
        }
    }

    #[test]
    fn a_named_target_needs_a_container_port_of_that_name_and_transport() {
        let container = |transport: &str| ContainerPort {
            name: "web".into(),
            number: 8080,
            transport: transport.into(),
        };
        let ports = [named("http", 80, "web")];
        assert_eq!(pairs(&on_pod(&ports, &[container("TCP")])), [(80, 8080)]);
        assert_eq!(pairs(&on_pod(&ports, &[container("UDP")])), []);
    }

    #[test]
    fn an_endpoint_moves_ports_by_port_name_first() {
        let own = |names: &[(&str, u32)]| {
            names
                .iter()
                .map(|(name, number)| ((*name).to_owned(), *number))
                .collect::<BTreeMap<_, _>>()
        };
        let ports = [named("http", 80, "web")];
        assert_eq!(pairs(&on_endpoint(&ports, &own(&[]))), []);
        assert_eq!(pairs(&on_endpoint(&ports, &own(&[("web", 1)]))), [(80, 1)]);
        assert_eq!(pairs(&on_endpoint(&ports, &own(&[("http", 2)]))), [(80, 2)]);
        assert_eq!(
            pairs(&on_endpoint(&ports, &own(&[("http", 2), ("web", 1)]))),
            [(80, 2)]
        );
    }
}
