//! Whose UDP the mesh carries: what pods say themselves, what their namespace says.

use api::k8s::objects::{Kind, ObjectKey};
use api::workload::Extension;

use super::World;
use super::objects::Objects;
use crate::translate::udp::{Udp, extension};

impl Objects {
    /// What a pod says itself; one of a Gateway speaks for nobody, and what is said around it is not about it.
    pub(super) fn own_udp(&self, workload: &ObjectKey) -> Option<bool> {
        let pod = self.pods.get(workload)?;
        pod.udp.said().or(pod.gateway.as_ref().map(|_| false))
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
    /// What ztunnels are told of a pod whose UDP is carried.
    pub(super) fn udp(&self, workload: &ObjectKey) -> Option<Extension> {
        let objects = &self.objects;
        let own = objects.own_udp(workload);
        let said = own.or_else(|| objects.udp_in(&workload.namespace));
        said.unwrap_or(false).then(extension)
    }
}
