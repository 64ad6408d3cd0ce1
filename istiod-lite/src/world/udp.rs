//! Whose UDP the mesh carries: what pods and machines say themselves, what the namespace of pods says.
//!
//! A node agent reads the same labels, and captures what they say. Who brings a proxy of his own has rules that were written when he
//! was, and those follow no label of a namespace: it is announced only where he himself says so.

use api::k8s::objects::{Kind, ObjectKey};
use api::workload::Extension;

use super::World;
use super::objects::Objects;
use crate::translate::udp::{Udp, extension};

impl Objects {
    /// What a workload says itself. What is said around it is not about a pod of a Gateway, which speaks for nobody, nor about
    /// who brings his own proxy.
    pub(super) fn own_udp(&self, workload: &ObjectKey) -> Option<bool> {
        if let Some(entry) = self.workload_entries.get(workload) {
            return Some(entry.udp.said().unwrap_or(false));
        }
        let pod = self.pods.get(workload)?;
        let apart = pod.gateway.is_some() || pod.own_proxy;
        pod.udp.said().or(apart.then_some(false))
    }

    fn udp_in(&self, namespace: &str) -> Option<bool> {
        let key = ObjectKey::new(Kind::Namespace, "", namespace);
        self.namespaces
            .get(&key)
            .map(|it| &it.udp)
            .and_then(Udp::said)
    }
}

impl World {
    /// What ztunnels are told of a workload whose UDP is carried.
    pub(super) fn udp(&self, workload: &ObjectKey) -> Option<Extension> {
        let objects = &self.objects;
        let own = objects.own_udp(workload);
        let said = own.or_else(|| objects.udp_in(&workload.namespace));
        said.unwrap_or(false).then(extension)
    }
}
