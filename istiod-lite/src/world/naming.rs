//! Who names which waypoint, by itself or through its namespace.

use api::k8s::objects::{Kind, ObjectKey};

use super::objects::{Objects, enter, leave};
use crate::translate::waypoint::{Choice, Wanted};

impl Objects {
    /// What an object's own labels say about waypoints.
    pub(super) fn choice(&self, key: &ObjectKey) -> Option<&Choice> {
        match key.kind {
            Kind::Pod => self.pods.get(key).map(|it| &it.waypoint),
            Kind::WorkloadEntry => self.workload_entries.get(key).map(|it| &it.waypoint),
            Kind::Service => self.services.get(key).map(|it| &it.waypoint),
            Kind::ServiceEntry => self.service_entries.get(key).map(|it| &it.waypoint),
            _ => None,
        }
    }

    /// The waypoint that an object names, by itself or through its namespace.
    pub(super) fn wanted(&self, key: &ObjectKey) -> Option<Wanted> {
        let namespace = ObjectKey::new(Kind::Namespace, "", &key.namespace);
        let unsaid = Choice::Unsaid;
        let inherited = self
            .namespaces
            .get(&namespace)
            .map_or(&unsaid, |it| &it.waypoint);
        self.choice(key)?.or(inherited).cloned()
    }

    /// Whether its namespace decides about its waypoint.
    pub(super) fn inherits(&self, key: &ObjectKey) -> bool {
        self.choice(key) == Some(&Choice::Unsaid)
    }

    /// Whether it names a waypoint of another namespace.
    pub(super) fn names_foreigner(&self, key: &ObjectKey) -> bool {
        let wanted = self.wanted(key);
        wanted.is_some_and(|it| {
            it.gateways()
                .any(|gateway| gateway.namespace != key.namespace)
        })
    }

    pub(super) fn link_choice(&mut self, key: &ObjectKey) {
        let Some(wanted) = self.wanted(key) else {
            return;
        };
        enter(&mut self.naming, &key.namespace, key);
        for gateway in wanted.gateways() {
            enter(&mut self.named, gateway, key);
        }
    }

    pub(super) fn unlink_choice(&mut self, key: &ObjectKey) {
        let Some(wanted) = self.wanted(key) else {
            return;
        };
        leave(&mut self.naming, &key.namespace, key);
        for gateway in wanted.gateways() {
            leave(&mut self.named, gateway, key);
        }
    }
}
