//! Names, and the fields of Kubernetes' own kinds that the mesh cannot do without.

use std::net::IpAddr;

use super::{Path, Problems};
use crate::k8s::objects::{Object, Pod, Service};

pub(super) fn check(object: &Object, problems: &mut Problems) {
    let path = Path::default().key("metadata");
    let metadata = object.metadata();
    match metadata.name.as_deref() {
        None | Some("") => problems.add(path.clone(), "name is missing"),
        Some(name) if !is_subdomain(name) => problems.add(
            path.key("name"),
            format!("{name:?} is not a DNS subdomain in lower case"),
        ),
        Some(_) => {}
    }
    if let Some(namespace) = metadata.namespace.as_deref()
        && object.kind().namespaced()
        && !is_label(namespace)
    {
        problems.add(
            path.key("namespace"),
            format!("{namespace:?} is not a DNS label in lower case"),
        );
    }
    match object {
        Object::Pod(pod) => check_pod(pod, problems),
        Object::Service(service) => check_service(service, problems),
        _ => {}
    }
}

fn check_pod(pod: &Pod, problems: &mut Problems) {
    let Some(status) = &pod.status else { return };
    let path = Path::default().key("status");
    if let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()) {
        check_ip(ip, path.key("podIP"), problems);
    }
    for (index, ip) in status.pod_ips.iter().flatten().enumerate() {
        check_ip(&ip.ip, path.key("podIPs").index(index).key("ip"), problems);
    }
}

fn check_service(service: &Service, problems: &mut Problems) {
    let Some(spec) = &service.spec else { return };
    let path = super::spec();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if u16::try_from(port.port).unwrap_or(0) == 0 {
            problems.add(
                path.key("ports").index(index).key("port"),
                format!("{} is not a port", port.port),
            );
        }
    }
    let single = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !matches!(*ip, "" | "None"));
    if let Some(ip) = single {
        check_ip(ip, path.key("clusterIP"), problems);
    }
    for (index, ip) in spec
        .cluster_ips
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, ip)| *ip != "None")
    {
        check_ip(ip, path.key("clusterIPs").index(index), problems);
    }
}

fn check_ip(text: &str, path: Path, problems: &mut Problems) {
    if text.parse::<IpAddr>().is_err() {
        problems.add(path, format!("{text:?} is not an IP address"));
    }
}

/// RFC 1123 subdomain, as Kubernetes wants most names.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label_of_any_length)
}

/// RFC 1123 label, as Kubernetes wants namespaces.
fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_label_of_any_length(name)
}

fn is_label_of_any_length(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes
            .iter()
            .all(|byte| alphanumeric(*byte) || *byte == b'-')
}
