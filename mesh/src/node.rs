//! Who a proxy says it is, when it opens a stream.

use std::net::IpAddr;

use api::discovery::Node;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// Metadata: the Gateway that the proxy is a pod of, in the pod's namespace. Who says so is sent what is for that
/// gateway, and only that.
pub const GATEWAY_NAME: &str = "GATEWAY_NAME";

/// The parts of a node's id.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// `ztunnel`, `waypoint`, `router` …
    pub kind: &'a str,
    /// Its own.
    pub address: IpAddr,
    /// Its pod.
    pub pod: &'a str,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// DNS domain of the cluster.
    pub domain: &'a str,
}

/// The message: `kind~address~pod.namespace~namespace.svc.domain`, and metadata, texts all of it.
pub fn node(name: Name<'_>, metadata: impl IntoIterator<Item = (String, String)>) -> Node {
    let Name {
        kind,
        address,
        pod,
        namespace,
        domain,
    } = name;
    let text = |(key, value)| {
        let kind = Some(Kind::StringValue(value));
        (key, Value { kind })
    };
    Node {
        id: format!("{kind}~{address}~{pod}.{namespace}~{namespace}.svc.{domain}"),
        metadata: Some(Struct {
            fields: metadata.into_iter().map(text).collect(),
        }),
        ..Node::default()
    }
}

/// A text of a node's metadata; anything else is as good as missing.
pub fn metadata<'a>(node: &'a Node, key: &str) -> &'a str {
    let fields = node.metadata.as_ref().map(|metadata| &metadata.fields);
    let value = fields.and_then(|fields| fields.get(key));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text,
        _ => "",
    }
}
