//! ServiceEntry and WorkloadEntry.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Path, Problems, spec, words};
use crate::k8s::istio::workload_group::WorkloadGroup;
use crate::k8s::istio::{Resolution, ServiceEntry, ServicePort, WorkloadEntry, WorkloadEntrySpec};

const PROTOCOLS: [&str; 12] = [
    "HTTP",
    "HTTPS",
    "GRPC",
    "GRPC-WEB",
    "HTTP2",
    "MONGO",
    "TCP",
    "TLS",
    "UDP",
    "REDIS",
    "MYSQL",
    "HTTP_PROXY",
];

pub(super) fn check(entry: &ServiceEntry, problems: &mut Problems) {
    check_hosts(entry, problems);
    check_addresses(entry, problems);
    check_ports(&entry.spec.ports, problems);
    check_resolution(entry, problems);
    let names: BTreeSet<&str> = entry.spec.ports.iter().map(|port| &*port.name).collect();
    for (index, endpoint) in entry.spec.endpoints.iter().enumerate() {
        let path = spec().key("endpoints").index(index);
        check_endpoint(endpoint, &path, problems);
        let unknown = |name: &&String| !names.contains(name.as_str());
        for name in endpoint.ports.keys().filter(unknown) {
            problems.add(
                path.key("ports").key(name),
                format!("the entry has no port {name:?}; use a name of spec.ports"),
            );
        }
    }
    if entry.spec.workload_selector.is_some() && !entry.spec.endpoints.is_empty() {
        problems.add(spec(), words::SELECTOR_OR_ENDPOINTS);
    }
}

fn check_hosts(entry: &ServiceEntry, problems: &mut Problems) {
    let path = spec().key("hosts");
    if entry.spec.hosts.is_empty() {
        problems.add(spec(), words::NO_HOST);
    }
    let mut before = BTreeSet::new();
    for (index, host) in entry.spec.hosts.iter().enumerate() {
        if host == "*" {
            problems.add(path.index(index), words::ANY_HOST);
        } else if !is_host(host.strip_prefix("*.").unwrap_or(host)) {
            problems.add(
                path.index(index),
                format!("{host:?} is not a host name; write a DNS name, as in api.example.com"),
            );
        }
        if !before.insert(host) {
            problems.add(
                path.index(index),
                format!("{host:?} is there twice; remove one"),
            );
        }
    }
}

fn check_addresses(entry: &ServiceEntry, problems: &mut Problems) {
    let path = spec().key("addresses");
    for (index, address) in entry.spec.addresses.iter().enumerate() {
        if !is_block(address) {
            problems.add(path.index(index), format!("{address:?} {}", words::ADDRESS));
        } else if address.contains('/')
            && !matches!(entry.spec.resolution, Resolution::None | Resolution::Static)
        {
            problems.add(path.index(index), words::BLOCK_RESOLUTION);
        }
    }
}

fn check_ports(ports: &[ServicePort], problems: &mut Problems) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = spec().key("ports").index(index);
        if !is_port(port.number) {
            problems.add(
                path.key("number"),
                format!("{} {}", port.number, words::PORT),
            );
        } else if !numbers.insert(port.number) {
            problems.add(
                path.key("number"),
                format!("{}: {}", port.number, words::PORT_TWICE),
            );
        }
        if port.name.is_empty() {
            problems.add(path.clone(), words::PORT_NAME);
        } else if !names.insert(&port.name) {
            problems.add(
                path.key("name"),
                format!("{:?} is there twice; names are unique", port.name),
            );
        }
        if port.target_port != 0 && !is_port(port.target_port) {
            problems.add(
                path.key("targetPort"),
                format!("{} {}", port.target_port, words::PORT),
            );
        }
        let protocol = port.protocol.to_ascii_uppercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            problems.add(
                path.key("protocol"),
                format!(
                    "{:?} is not a protocol; one of {}",
                    port.protocol,
                    PROTOCOLS.join(", ")
                ),
            );
        }
    }
}

/// Which endpoints go with which resolution.
fn check_resolution(entry: &ServiceEntry, problems: &mut Problems) {
    let spec = &entry.spec;
    let path = super::spec();
    let wildcard = spec.hosts.iter().any(|host| host.starts_with('*'));
    match spec.resolution {
        Resolution::None if !spec.endpoints.is_empty() => {
            problems.add(path.key("endpoints"), words::NONE_HAS_NO_ENDPOINTS);
        }
        Resolution::None
            if spec
                .ports
                .iter()
                .any(|port| port.target_port != 0 && port.target_port != port.number) =>
        {
            problems.add(path.key("ports"), words::NONE_KEEPS_PORT);
        }
        Resolution::Static => {
            for (index, endpoint) in spec.endpoints.iter().enumerate() {
                let elsewhere = endpoint.address.is_empty() && !endpoint.network.is_empty();
                if !elsewhere && endpoint.address.parse::<IpAddr>().is_err() {
                    let path = path.key("endpoints").index(index).key("address");
                    problems.add(
                        path,
                        format!("{:?}: {}", endpoint.address, words::STATIC_NEEDS_IPS),
                    );
                }
            }
        }
        Resolution::Dns | Resolution::DnsRoundRobin if wildcard && spec.endpoints.is_empty() => {
            problems.add(path.key("hosts"), words::WILDCARD_UNRESOLVED);
        }
        Resolution::DnsRoundRobin if spec.endpoints.len() > 1 => {
            problems.add(path.key("endpoints"), words::ROUND_ROBIN_ONE);
        }
        Resolution::DynamicDns if !spec.endpoints.is_empty() => {
            problems.add(path.key("endpoints"), words::DYNAMIC_HAS_NO_ENDPOINTS);
        }
        _ => {}
    }
    if spec.workload_selector.is_some() && spec.resolution == Resolution::None {
        problems.add(path.key("workloadSelector"), words::SELECTOR_RESOLUTION);
    }
}

pub(super) fn check_workload_entry(entry: &WorkloadEntry, problems: &mut Problems) {
    check_endpoint(&entry.spec, &spec(), problems);
}

/// The template needs no address: it is the machine's.
pub(super) fn check_workload_group(group: &WorkloadGroup, problems: &mut Problems) {
    let template = WorkloadEntrySpec {
        address: match &*group.spec.template.address {
            "" => "192.0.2.1".to_owned(),
            address => address.to_owned(),
        },
        ..group.spec.template.clone()
    };
    check_endpoint(&template, &spec().key("template"), problems);
    let Some(probe) = &group.spec.probe else {
        return;
    };
    let path = spec().key("probe");
    let kinds = [
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
        probe.exec.is_some(),
    ];
    if kinds.iter().filter(|named| **named).count() != 1 {
        problems.add(path.clone(), "name one of httpGet, tcpSocket and exec");
    }
    let http = probe.http_get.as_ref();
    let ports = [
        http.map(|it| it.port),
        probe.tcp_socket.as_ref().map(|it| it.port),
    ];
    for port in ports.into_iter().flatten().filter(|port| !is_port(*port)) {
        problems.add(path.clone(), format!("{port} is no port; write 1 to 65535"));
    }
    if http.is_some_and(|it| !matches!(&*it.scheme, "" | "HTTP")) {
        problems.add(
            path.key("httpGet").key("scheme"),
            "only HTTP: the application is asked in the clear, on its own machine",
        );
    }
    if probe.exec.as_ref().is_some_and(|it| it.command.is_empty()) {
        problems.add(path.key("exec").key("command"), "name a program");
    }
}

fn check_endpoint(endpoint: &WorkloadEntrySpec, path: &Path, problems: &mut Problems) {
    let address = endpoint.address.as_str();
    if address.is_empty() && endpoint.network.is_empty() {
        problems.add(path.clone(), words::NO_ADDRESS);
    }
    if address.starts_with("unix://") {
        problems.add(path.key("address"), words::NO_SOCKETS);
    } else if !address.is_empty() && address.parse::<IpAddr>().is_err() && !is_host(address) {
        problems.add(
            path.key("address"),
            format!("{address:?} is neither an IP address nor a host name; write 192.0.2.1 or db.example.com"),
        );
    }
    for (name, number) in endpoint
        .ports
        .iter()
        .filter(|(_, number)| !is_port(**number))
    {
        problems.add(
            path.key("ports").key(name),
            format!("{number} {}", words::PORT),
        );
    }
}

fn is_port(number: u32) -> bool {
    (1..=65535).contains(&number)
}

fn is_block(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().is_ok();
    };
    let widest = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= widest)
}

/// A DNS name as people write them: labels of letters, digits, `-` and `_`.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.split('.').all(label)
}
