//! Everything `/config_dump` shows, written piece by piece.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use mesh::Snapshot;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::certificates::CertificateShape;
use super::policies::PolicyShape;
use super::settings::{settings, version};
use super::shapes::{ServiceShape, WorkloadShape};
use crate::agent::{Listed, Roster};
use crate::connections;
use crate::node::Node;

/// One dump: what it is made of, fixed at its beginning.
pub(super) struct Dump {
    node: Arc<Node>,
    roster: Roster,
    snapshot: Arc<Snapshot>,
}

impl Dump {
    pub(super) fn new(node: Arc<Node>, roster: Roster) -> Self {
        let snapshot = Arc::clone(&node.mesh.load());
        Self {
            node,
            roster,
            snapshot,
        }
    }

    /// Writes it, indented: people read it as often as programs do.
    pub(super) fn write(&self, out: impl io::Write) -> serde_json::Result<()> {
        serde_json::to_writer_pretty(out, self)
    }
}

impl Serialize for Dump {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(None)?;
        map.serialize_entry("certificates", &self.certificates())?;
        map.serialize_entry("config", &settings(&self.node.config))?;
        map.serialize_entry("policies", &Policies(&self.snapshot))?;
        map.serialize_entry("services", &Services(&self.snapshot))?;
        map.serialize_entry("stagedServices", &json!({}))?;
        map.serialize_entry(
            "staticConfig",
            &json!({ "policies": [], "services": [], "workloads": [] }),
        )?;
        map.serialize_entry("version", &version())?;
        map.serialize_entry("workloadState", &Pods(self.roster.list(), &self.node))?;
        map.serialize_entry("workloads", &Workloads(&self.snapshot))?;
        map.end()
    }
}

impl Dump {
    fn certificates(&self) -> Vec<CertificateShape> {
        self.node
            .certificates
            .states()
            .iter()
            .map(CertificateShape::of)
            .collect()
    }
}

/// Workloads in the order of their uids. Sorting costs one pointer per workload; the texts are
/// written one workload at a time.
pub(super) struct Workloads<'a>(pub(super) &'a Snapshot);

impl Serialize for Workloads<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let order = |a: &&Arc<mesh::Workload>, b: &&Arc<mesh::Workload>| a.uid.cmp(&b.uid);
        sequence(out, self.0.workloads(), order, |workload| {
            WorkloadShape::of(workload)
        })
    }
}

/// Services in the order of namespace and host.
pub(super) struct Services<'a>(pub(super) &'a Snapshot);

impl Serialize for Services<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let order = |a: &&Arc<mesh::Service>, b: &&Arc<mesh::Service>| {
            (&a.namespace, &a.hostname).cmp(&(&b.namespace, &b.hostname))
        };
        sequence(out, self.0.services(), order, |service| {
            ServiceShape::of(service, self.0)
        })
    }
}

/// Policies in the order of their names.
pub(super) struct Policies<'a>(pub(super) &'a Snapshot);

impl Serialize for Policies<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let order = |a: &&Arc<mesh::Policy>, b: &&Arc<mesh::Policy>| a.key.cmp(&b.key);
        sequence(out, self.0.policies(), order, |policy| {
            PolicyShape::of(policy)
        })
    }
}

fn sequence<S: Serializer, T, Shape: Serialize>(
    out: S,
    items: impl Iterator<Item = T>,
    order: impl FnMut(&T, &T) -> Ordering,
    shape: impl Fn(T) -> Shape,
) -> Result<S::Ok, S::Error> {
    let mut items: Vec<_> = items.collect();
    items.sort_unstable_by(order);
    let mut sequence = out.serialize_seq(Some(items.len()))?;
    for item in items {
        sequence.serialize_element(&shape(item))?;
    }
    sequence.end()
}

/// `workloadState`: the pods of this node by uid, with their open connections.
struct Pods<'a>(Vec<Listed>, &'a Node);

impl Serialize for Pods<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(self.0.iter().map(|pod| {
            (
                &*pod.uid,
                pod_state(pod, &self.1.connections.of_pod(&pod.uid)),
            )
        }))
    }
}

pub(super) fn pod_state(listed: &Listed, connections: &connections::Listed) -> Value {
    let pod = &listed.pod;
    json!({
        "state": listed.state,
        "connections": connections,
        "info": { "name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account },
    })
}
