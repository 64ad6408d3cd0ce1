//! Pure: who a stream's client says it is, and whether its token agrees.
//!
//! `ztunnel~10.20.0.9~ztunnel-node1.istio-system~istio-system.svc.cluster.local`
//!
//! The id is for people and for the kind of proxy. What must agree with the token is the node's
//! metadata: `NAMESPACE` (the id's where it is empty) and, if given, `SERVICE_ACCOUNT`. Texts of
//! the refusals are Istio's, people search for them.

use api::discovery::Node;
use hbone::Identity;
use mesh::node::metadata;
use tonic::Status;

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
}

const KINDS: [&str; 4] = ["sidecar", "router", "waypoint", "ztunnel"];

/// The client behind the first request, or why it is sent away.
pub(super) fn check(node: Option<&Node>, caller: &Identity) -> Result<Proxy, Status> {
    let node = node.filter(|node| !node.id.is_empty());
    let node = node.ok_or_else(|| Status::invalid_argument("missing node information"))?;
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
    })
}
