//! Whom workloads may call that nobody knows: what they say themselves, what is said around them.

use api::k8s::objects::{Kind, ObjectKey};
use api::workload::Extension;

use super::World;
use super::objects::Objects;
use crate::translate::egress::{Egress, extension};

static UNSAID: Egress = Egress::Unsaid;

impl Objects {
    /// What a workload says itself.
    pub(super) fn own_egress(&self, workload: &ObjectKey) -> &Egress {
        let own = match workload.kind {
            Kind::Pod => self.pods.get(workload).map(|it| &it.egress),
            _ => self.workload_entries.get(workload).map(|it| &it.egress),
        };
        own.unwrap_or(&UNSAID)
    }

    fn egress_in(&self, namespace: &str) -> &Egress {
        let key = ObjectKey::new(Kind::Namespace, "", namespace);
        let namespace = self.namespaces.get(&key);
        namespace.map_or(&UNSAID, |it| &it.egress)
    }

    /// A pod of a Gateway calls whom its routes name, which may be anybody: only what it says itself is about it.
    fn stands_for_others(&self, workload: &ObjectKey) -> bool {
        let pod = self.pods.get(workload);
        pod.is_some_and(|it| it.gateway.is_some() && it.egress == Egress::Unsaid)
    }
}

impl World {
    /// What the ztunnel of a workload is told of whom it may call; nothing where it may call everybody.
    pub(super) fn egress(&self, workload: &ObjectKey) -> Option<Extension> {
        let objects = &self.objects;
        if objects.stands_for_others(workload) {
            return None;
        }
        let (name, mesh) = (&workload.namespace, self.settings.egress);
        extension(
            objects.own_egress(workload),
            name,
            objects.egress_in(name),
            mesh,
        )
    }
}
