//! Routes: whom they depend on, for which waypoints they are, and what is said of them.

use std::collections::BTreeSet;

use api::k8s::objects::{Kind, ObjectKey};

use super::depend::mark;
use super::objects::Objects;
use super::references::Reference;
use super::{Builder, Output, World};

impl World {
    /// Marks those who refer to somebody who is dirty.
    pub(super) fn mark_referring(&self, dirty: &mut BTreeSet<Builder>) {
        if self.objects.references.is_empty() {
            return;
        }
        let keys = dirty.iter().filter_map(|builder| match builder {
            Builder::Object(key) => Some(Reference::Object(key.clone())),
            Builder::Waypoint(_) | Builder::Strict => None,
        });
        let referring: Vec<ObjectKey> = keys
            .flat_map(|reference| {
                self.objects
                    .references
                    .to(&reference)
                    .cloned()
                    .collect::<Vec<_>>()
            })
            .collect();
        mark(dirty, referring);
    }

    /// Who refers to a host by its name.
    pub(super) fn touch_host(&self, host: &str, dirty: &mut BTreeSet<Builder>) {
        self.touch_referring(&Reference::Host(host.into()), dirty);
    }

    /// Who refers into a namespace.
    pub(super) fn touch_grants(&self, namespace: &str, dirty: &mut BTreeSet<Builder>) {
        self.touch_referring(&Reference::Grants(namespace.into()), dirty);
    }

    fn touch_referring(&self, reference: &Reference, dirty: &mut BTreeSet<Builder>) {
        mark(dirty, self.objects.references.to(reference).cloned());
    }

    /// The waypoints that an object names are told whom they front.
    pub(super) fn touch_fronting(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        let wanted = self.objects.wanted(key);
        let gateways = wanted.iter().flat_map(|it| it.gateways());
        let there = gateways.filter(|it| self.objects.gateways.contains_key(*it));
        dirty.extend(there.cloned().map(Builder::Waypoint));
    }

    /// A Gateway that comes, changes or goes: itself, and who is for all of its class or namespace.
    pub(super) fn touch_programmed(&self, key: &ObjectKey, dirty: &mut BTreeSet<Builder>) {
        dirty.insert(Builder::Waypoint(key.clone()));
        if let Some(gateway) = self.objects.gateways.get(key) {
            let class = ObjectKey::new(Kind::GatewayClass, "", &gateway.class);
            self.touch_referring(&Reference::Object(class), dirty);
            self.touch_referring(&Reference::Gateways(key.namespace.clone()), dirty);
            self.touch_referring(&Reference::Gateways("".into()), dirty);
        }
    }

    pub(super) fn build_route(&self, key: &ObjectKey) -> Option<Output> {
        let _route = self.objects.routes.get(key)?;
        Some(Output::default())
    }
}

impl Objects {
    pub(super) fn link_route(&mut self, key: &ObjectKey) {
        let Some(route) = self.routes.get(key) else {
            return;
        };
        let _ = route;
        self.references.set(key, []);
    }
}
