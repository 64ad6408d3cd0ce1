//! What the agent needs to know of a pod, parsed from its Kubernetes object.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use api::k8s::labels;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use crate::rules::{Exempt, Interface};

/// Labels or annotations.
pub(crate) type Words = BTreeMap<String, String>;

/// The pod's UID: what ztunnel knows it by. A pod object written by hand may lack one; then it is
/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Uid(Arc<str>);

impl Uid {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Namespace and name: what plugins and files know it by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodName {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl PodName {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pod {
    pub(crate) uid: Uid,
    /// Whether the uid is the object's own.
    pub(crate) has_own_uid: bool,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) service_account: Arc<str>,
    pub(crate) labels: Words,
    /// Those that mean something to the agent; others can be long.
    pub(crate) annotations: Words,
    pub(crate) host_network: bool,
    /// It is being deleted.
    pub(crate) deleting: bool,
    pub(crate) phase: Phase,
    /// Empty until the kubelet has reported them.
    pub(crate) ips: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not up yet, or nothing is said about it.
    Starting,
    Running,
    /// Succeeded or failed: no process of it will ever run again.
    Ended,
}

impl Pod {
    /// `None` if the pod is of another node, or of none yet.
    pub(crate) fn on_node(object: &core::Pod, node: &str) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        if spec.node_name.as_deref() != Some(node) {
            return None;
        }
        let metadata = &object.metadata;
        let namespace = metadata
            .namespace
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("default");
        let name = metadata.name.as_deref()?;
        let own_uid = metadata.uid.as_deref().filter(|uid| !uid.is_empty());
        let status = object.status.as_ref();
        let phase = match status.and_then(|status| status.phase.as_deref()) {
            Some("Succeeded" | "Failed") => Phase::Ended,
            Some("Running") => Phase::Running,
            _ => Phase::Starting,
        };
        Some(Self {
            uid: own_uid.map_or_else(|| Uid::new(&format!("{namespace}/{name}")), Uid::new),
            has_own_uid: own_uid.is_some(),
            namespace: namespace.into(),
            name: name.into(),
            service_account: spec
                .service_account_name
                .as_deref()
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .into(),
            labels: metadata.labels.clone().unwrap_or_default(),
            annotations: metadata
                .annotations
                .iter()
                .flatten()
                .filter(|(name, _)| READ.iter().chain(&CAPTURE).any(|read| read == name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            host_network: spec.host_network.unwrap_or(false),
            deleting: metadata.deletion_timestamp.is_some(),
            phase,
            ips: status.map(ips).unwrap_or_default(),
        })
    }

    /// All that is known of a pod that was deleted while the agent was away.
    pub(crate) fn remembered(uid: Uid, namespace: &str, name: &str) -> Self {
        Self {
            uid,
            has_own_uid: true,
            namespace: namespace.into(),
            name: name.into(),
            service_account: "default".into(),
            labels: Words::new(),
            annotations: Words::new(),
            host_network: false,
            deleting: true,
            phase: Phase::Ended,
            ips: Vec::new(),
        }
    }

    /// Whether the rules in the pod would be others.
    pub(crate) fn captures_differently_from(&self, other: &Self) -> bool {
        CAPTURE
            .iter()
            .any(|name| self.annotation(name) != other.annotation(name))
    }

    pub(crate) fn pod_name(&self) -> PodName {
        PodName {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }

    /// Whether the runtime means this pod by `uid`. It knows a static pod by the uid of the kubelet's file,
    /// which the object carries as an annotation.
    pub(crate) fn answers_to(&self, uid: &str) -> bool {
        !self.has_own_uid || self.uid.as_str() == uid || self.annotation(MIRROR) == Some(uid)
    }

    /// Its annotation of ours.
    pub(crate) fn mark(&self) -> Option<String> {
        self.annotation(labels::REDIRECTION).map(str::to_owned)
    }

    /// Whether an earlier life of the agent said that the pod is enrolled. A pod that brings its own proxy has said so itself:
    /// the rules in it are its own, and to release it would open it.
    pub(crate) fn is_marked(&self) -> bool {
        self.annotation(labels::REDIRECTION) == Some(labels::REDIRECTION_ENABLED)
            && self.annotation(labels::SIDECAR_STATUS).is_none()
    }

    pub(crate) fn bypasses_inbound(&self) -> bool {
        self.annotation(labels::BYPASS_INBOUND_CAPTURE) == Some("true")
    }

    /// Whether DNS is captured, where `node` is the node's setting.
    pub(crate) fn captures_dns(&self, node: bool) -> bool {
        match self.annotation(labels::DNS_CAPTURE) {
            Some("true") => true,
            Some("false") => false,
            _ => node,
        }
    }

    /// Whether its UDP is captured, in a namespace with these labels. What cannot be read says nothing.
    pub(crate) fn captures_udp(&self, namespace: &Words) -> bool {
        let said = |words: &Words| match words.get(labels::UDP).map(String::as_str) {
            Some(labels::UDP_ENABLED) => Some(true),
            Some(labels::UDP_DISABLED) => Some(false),
            _ => None,
        };
        said(&self.labels)
            .or_else(|| said(namespace))
            .unwrap_or(false)
    }

    pub(crate) fn virtual_interfaces(&self) -> Result<Vec<Interface>, Unreadable> {
        self.list(labels::REROUTE_VIRTUAL_INTERFACES, str::parse)
    }

    /// What of its connections is not captured.
    pub(crate) fn exempt(&self) -> Result<Exempt, Unreadable> {
        let ports = |name| self.list(name, port);
        let ranges = |name| self.list(name, range);
        let only = labels::INCLUDE_OUTBOUND_RANGES;
        let everywhere = self
            .annotation(only)
            .is_none_or(|text| text.split(',').any(|part| part.trim() == "*"));
        Ok(Exempt {
            outbound_ports: ports(labels::EXCLUDE_OUTBOUND_PORTS)?,
            outbound_ranges: ranges(labels::EXCLUDE_OUTBOUND_RANGES)?,
            outbound_but: match everywhere {
                true => None,
                false => Some(ranges(only)?),
            },
            inbound_ports: ports(labels::EXCLUDE_INBOUND_PORTS)?,
        })
    }

    /// The parts of an annotation, which is a list with commas.
    fn list<T, E: fmt::Display>(
        &self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Unreadable> {
        let unreadable = |why: String| Unreadable { name, why };
        let listed = self.annotation(name).unwrap_or_default().split(',');
        let mut parts = Vec::new();
        for part in listed.map(str::trim).filter(|part| !part.is_empty()) {
            if parts.len() == PARTS {
                return Err(unreadable(format!("more than {PARTS} entries")));
            }
            parts.push(read(part).map_err(|why| unreadable(why.to_string()))?);
        }
        Ok(parts)
    }
}

/// An annotation about capture that says what nobody understands. Its pod stays out rather than be captured otherwise than
/// was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name}: {why}")]
pub(crate) struct Unreadable {
    name: &'static str,
    why: String,
}

fn port(text: &str) -> Result<u16, String> {
    let read = text.parse().ok().filter(|port| *port != 0);
    read.ok_or_else(|| format!("{text:?} is no port"))
}

/// A range of addresses; an address alone is one of itself.
fn range(text: &str) -> Result<IpNet, String> {
    let whole = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let read = text.parse().ok().or_else(whole);
    read.ok_or_else(|| format!("{text:?} is no range of addresses (10.0.0.0/8)"))
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn ips(status: &core::PodStatus) -> Vec<IpAddr> {
    let listed = status
        .pod_ips
        .iter()
        .flatten()
        .map(|entry| entry.ip.as_str());
    let mut ips: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(
            status
                .pod_ip
                .as_deref()
                .and_then(|ip| ip.parse::<IpAddr>().ok()),
        );
    }
    ips
}

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Entries of one list: each becomes a rule, which every connection of the pod is held against.
const PARTS: usize = 100;
/// The annotations about capture.
const CAPTURE: [&str; 7] = [
    labels::BYPASS_INBOUND_CAPTURE,
    labels::DNS_CAPTURE,
    labels::REROUTE_VIRTUAL_INTERFACES,
    labels::EXCLUDE_OUTBOUND_PORTS,
    labels::EXCLUDE_OUTBOUND_RANGES,
    labels::INCLUDE_OUTBOUND_RANGES,
    labels::EXCLUDE_INBOUND_PORTS,
];
/// The others that are kept.
const READ: [&str; 3] = [labels::REDIRECTION, labels::SIDECAR_STATUS, MIRROR];

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A pod of node `n1`, from JSON laid over a plain one.
    pub(crate) fn pod(metadata: serde_json::Value, rest: serde_json::Value) -> Pod {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": "app", "uid": "u-1" },
            "spec": { "nodeName": "n1", "containers": [] },
        });
        merge(&mut object["metadata"], metadata);
        merge(&mut object, rest);
        let object: core::Pod = serde_json::from_value(object).unwrap();
        Pod::on_node(&object, "n1").unwrap()
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        for (key, value) in from.as_object().cloned().unwrap_or_default() {
            if into[&key].is_object() && value.is_object() {
                merge(&mut into[&key], value);
            } else {
                into[&key] = value;
            }
        }
    }

    #[test]
    fn what_is_not_said_has_kubernetes_defaults() {
        let plain = pod(json!({ "namespace": "", "uid": "" }), json!({}));
        assert_eq!(plain.uid, Uid::new("default/web"));
        assert_eq!(
            (&*plain.namespace, &*plain.service_account),
            ("default", "default")
        );
        assert_eq!(
            (plain.phase, plain.ips.len(), plain.host_network),
            (Phase::Starting, 0, false)
        );
    }

    #[test]
    fn pods_of_other_nodes_are_none_of_ours() {
        let object: core::Pod = serde_json::from_value(json!({
            "metadata": { "name": "web" }, "spec": { "nodeName": "n2", "containers": [] },
        }))
        .unwrap();
        assert_eq!(Pod::on_node(&object, "n1"), None);
        assert_eq!(Pod::on_node(&core::Pod::default(), "n1"), None);
    }

    #[test]
    fn annotations_say_how_to_capture() {
        let annotated =
            |key: &str, value: &str| pod(json!({ "annotations": { key: value } }), json!({}));
        assert!(annotated("ambient.istio.io/bypass-inbound-capture", "true").bypasses_inbound());
        assert!(!annotated("ambient.istio.io/bypass-inbound-capture", "yes").bypasses_inbound());
        for (value, node, captured) in [
            ("true", false, true),
            ("false", true, false),
            ("maybe", true, true),
            ("", false, false),
        ] {
            assert_eq!(
                annotated("ambient.istio.io/dns-capture", value).captures_dns(node),
                captured,
                "{value:?}"
            );
        }
        let two = annotated("istio.io/reroute-virtual-interfaces", "eth1, eth2,");
        assert_eq!(two.virtual_interfaces().unwrap().len(), 2);
        assert!(
            annotated("istio.io/reroute-virtual-interfaces", "eth*")
                .virtual_interfaces()
                .is_err()
        );
    }

    #[test]
    fn annotations_say_what_is_not_captured_and_what_cannot_be_read_is_no_exemption() {
        let annotated = |annotations: &[(&str, &str)]| {
            let named = |(name, value): &(&str, &str)| {
                (format!("traffic.sidecar.istio.io/{name}"), json!(value))
            };
            let named: serde_json::Map<_, _> = annotations.iter().map(named).collect();
            pod(json!({ "annotations": named }), json!({})).exempt()
        };
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(annotated(&[]), Ok(Exempt::default()));
        let all = annotated(&[
            ("excludeOutboundPorts", "443, 5432,"),
            ("excludeOutboundIPRanges", "10.0.0.0/8,fd00::/8,192.0.2.7"),
            ("includeOutboundIPRanges", "172.16.0.0/12"),
            ("excludeInboundPorts", "9090"),
        ]);
        let expected = Exempt {
            outbound_ports: vec![443, 5432],
            outbound_ranges: nets(&["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"]),
            outbound_but: Some(nets(&["172.16.0.0/12"])),
            inbound_ports: vec![9090],
        };
        assert_eq!(all, Ok(expected));
        let only = |text| {
            annotated(&[("includeOutboundIPRanges", text)])
                .unwrap()
                .outbound_but
        };
        assert_eq!(only("*"), None);
        assert_eq!(only(""), Some(Vec::new()), "nothing is captured");
        for (name, wrong) in [
            ("excludeOutboundPorts", "0"),
            ("excludeOutboundPorts", "65536"),
            ("excludeInboundPorts", "http"),
            ("excludeInboundPorts", "*"),
            ("excludeOutboundIPRanges", "10.0.0.0/33"),
            ("excludeOutboundIPRanges", "example.com"),
            ("includeOutboundIPRanges", "10.0.0.0/8 ; flush ruleset"),
        ] {
            let why = annotated(&[(name, wrong)]).unwrap_err().to_string();
            let begins = format!("annotation traffic.sidecar.istio.io/{name}: ");
            assert!(why.starts_with(&begins), "{why}");
        }
        let many = vec!["1"; PARTS + 1].join(",");
        assert!(annotated(&[("excludeOutboundPorts", &many)]).is_err());
    }

    #[test]
    fn only_annotations_that_mean_something_are_kept() {
        let annotations = json!({
            "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(100_000),
            "ambient.istio.io/redirection": "enabled",
            "kubernetes.io/config.mirror": "hash",
        });
        let pod = pod(json!({ "annotations": annotations }), json!({}));
        assert_eq!(pod.annotations.len(), 2);
        assert!(pod.is_marked());
        let mut with_its_own = pod.clone();
        let status = (labels::SIDECAR_STATUS.to_owned(), "{}".to_owned());
        with_its_own.annotations.extend([status]);
        assert!(!with_its_own.is_marked());
        for (uid, its_own) in [("u-1", true), ("hash", true), ("other", false), ("", false)] {
            assert_eq!(pod.answers_to(uid), its_own, "{uid:?}");
        }
    }

    #[test]
    fn addresses_come_from_the_list_or_from_the_single_one() {
        let both = json!({ "status": { "podIP": "10.0.0.9", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] } });
        assert_eq!(pod(json!({}), both).ips.len(), 2);
        let one = json!({ "status": { "phase": "Running", "podIP": "10.0.0.9" } });
        assert_eq!(
            pod(json!({}), one).ips,
            ["10.0.0.9".parse::<IpAddr>().unwrap()]
        );
    }
}
