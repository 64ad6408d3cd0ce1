//! Pure: who a stream's client says it is, and whether its token agrees.
//!
//! `ztunnel~10.20.0.9~ztunnel-node1.istio-system~istio-system.svc.cluster.local`
//!
//! The id is for people and for the kind of proxy. What must agree with the token is the node's
//! metadata: `NAMESPACE` (the id's where it is empty) and, if given, `SERVICE_ACCOUNT`. Texts of
//! the refusals are Istio's, people search for them.

use api::discovery::Node;
use api::k8s::labels::GATEWAY_NAME as GATEWAY_LABEL;
use hbone::Identity;
use mesh::node::{GATEWAY_NAME, metadata};
use prost::Message as _;
use tonic::Status;

use crate::authenticate::Caller;
use crate::machine::{Machine, Refused};
use crate::roster::Roster;

/// A client that may subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// The whole id.
    pub(super) id: String,
    /// `<pod>.<namespace>`
    pub(super) name: String,
    /// `ztunnel`, `waypoint` …
    pub(super) kind: &'static str,
    /// `CLUSTER_ID` of its metadata.
    pub(super) cluster: String,
    /// `ISTIO_VERSION` of its metadata.
    pub(super) version: String,
    /// `GATEWAY_NAME` of its metadata: the Gateway that it says it is a proxy of.
    pub(super) gateway: Option<String>,
}

/// What a client says of itself is kept as long as it is connected, and shown to operators. Pods have no more annotations than that.
const LARGEST: usize = 256 << 10;
const KINDS: [&str; 4] = ["sidecar", "router", "waypoint", "ztunnel"];

/// The client behind the first request, or why it is sent away.
pub(super) fn check(node: Option<&Node>, caller: &Identity) -> Result<Proxy, Status> {
    let node = node.filter(|node| !node.id.is_empty());
    let node = node.ok_or_else(|| Status::invalid_argument("missing node information"))?;
    let length = node.encoded_len();
    if length > LARGEST {
        let text = format!("node information of {length} bytes is more than {LARGEST}");
        return Err(Status::invalid_argument(text));
    }
    let parts: Vec<&str> = node.id.split('~').collect();
    let [kind, _address, name, _domain] = parts[..] else {
        let text = format!("missing parts in the service node {:?}", node.id);
        return Err(Status::invalid_argument(text));
    };
    let Some(kind) = KINDS.into_iter().find(|known| *known == kind) else {
        let kinds = KINDS.join(" ");
        let text = format!(
            "invalid node type (valid types: [{kinds}]) in the service node {:?}",
            node.id
        );
        return Err(Status::invalid_argument(text));
    };
    let namespace = match metadata(node, "NAMESPACE") {
        "" => name.rsplit_once('.').map_or("", |(_, namespace)| namespace),
        namespace => namespace,
    };
    let account = metadata(node, "SERVICE_ACCOUNT");
    let agrees = namespace == caller.namespace()
        && (account.is_empty() || account == caller.service_account());
    if !agrees {
        return Err(Status::permission_denied(format!(
            "authorization failed: no identities ([{caller}]) matched {namespace}/{account}"
        )));
    }
    Ok(Proxy {
        id: node.id.clone(),
        name: name.into(),
        kind,
        cluster: metadata(node, "CLUSTER_ID").into(),
        version: metadata(node, "ISTIO_VERSION").into(),
        gateway: Some(metadata(node, GATEWAY_NAME).into()).filter(|name: &String| !name.is_empty()),
    })
}

/// Compares what a machine says of itself with the book: it may leave out what it likes.
pub(super) fn machine(node: Option<&Node>, machine: &Machine) -> Result<(), Refused> {
    let Some(node) = node else { return Ok(()) };
    let parts: Vec<&str> = node.id.split('~').collect();
    let name = format!("{}.{}", machine.join.name, machine.join.namespace);
    machine.says("name", parts.get(2).copied().unwrap_or_default(), &name)?;
    let says = |key, is: &str| machine.says(key, metadata(node, key), is);
    says("NAME", &machine.join.name)?;
    says("NAMESPACE", &machine.join.namespace)?;
    says("SERVICE_ACCOUNT", &machine.join.service_account)?;
    says(
        "AUTO_REGISTER_GROUP",
        machine.join.group.as_deref().unwrap_or_default(),
    )?;
    // It may have others that are nobody's business; those it names must include its own.
    let addresses = metadata(node, "INSTANCE_IPS");
    let mut said = addresses.split(',').map(|said| said.trim().parse());
    if said.any(|said| said.is_ok_and(|said| machine.is_at(said))) {
        return Ok(());
    }
    machine.says("INSTANCE_IPS", addresses, &machine.address.to_string())
}

/// The gateway (`namespace/name`) whose resources a client is sent: the one that it names, if its pod is labelled as
/// one of that gateway and runs as the identity that was proven. So nobody gets keys and policies of others by saying so.
pub(super) fn gateway(
    proxy: &Proxy,
    caller: &Caller,
    roster: &Roster,
) -> Result<Option<String>, Status> {
    let Some(gateway) = &proxy.gateway else {
        return Ok(None);
    };
    let identity = &caller.identity;
    let pod = match &caller.pod {
        Some(bound) => bound.clone(),
        None => {
            let (name, namespace) = proxy.name.rsplit_once('.').unwrap_or_default();
            let known = roster.pod(namespace, name).cloned();
            // It may just have come into being: the proxy tries again.
            let unknown = || Status::unavailable(format!("pod {} is not known", proxy.name));
            known.ok_or_else(unknown)?
        }
    };
    let agrees = pod.namespace == identity.namespace()
        && pod.service_account == identity.service_account()
        && pod.gateway.as_deref() == Some(gateway);
    if !agrees {
        return Err(Status::permission_denied(format!(
            "pod {}/{}, which {identity} speaks for, is none of Gateway {gateway} (label {GATEWAY_LABEL})",
            pod.namespace, pod.name
        )));
    }
    Ok(Some(format!("{}/{gateway}", pod.namespace)))
}
