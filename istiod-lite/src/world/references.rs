//! Who refers to what, for objects that only refer: routes, and policies of layer 7.
//!
//! Whoever is referred to and changes makes those anew who refer to it. References to what is not
//! there are kept like others: it may come.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::k8s::objects::{Kind, ObjectKey};

use super::depend::mark;
use super::objects::{enter, leave};
use super::{Builder, World};
use crate::translate::policy::Target;

/// What an object refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reference {
    /// One object, there or not. For what names a waypoint this includes who stands in front of it;
    /// for a GatewayClass, which Gateways are of it; for a Namespace, the services in it.
    Object(ObjectKey),
    /// Whoever has a host name.
    Host(Arc<str>),
    /// The ReferenceGrants of a namespace; with the empty name, of all.
    Grants(Arc<str>),
    /// Which Gateways there are in a namespace; with the empty name, in all.
    Gateways(Arc<str>),
}

impl Reference {
    /// What a policy with these targets refers to.
    pub(super) fn of_targets(targets: &[Target]) -> impl Iterator<Item = Self> {
        let objects = targets.iter().filter_map(|it| it.object.as_ref());
        objects.flat_map(|object| {
            let gateways = Self::Gateways(object.name.clone());
            let anywhere = object.kind == Kind::Namespace;
            let gateways = anywhere.then_some(gateways);
            gateways.into_iter().chain([Self::Object(object.clone())])
        })
    }
}

/// The references of all objects, both ways.
#[derive(Debug, Default)]
pub(super) struct References {
    of: HashMap<ObjectKey, BTreeSet<Reference>>,
    to: HashMap<Reference, BTreeSet<ObjectKey>>,
}

impl References {
    /// Enters what an object refers to, in the place of what it did before.
    pub(super) fn set(
        &mut self,
        object: &ObjectKey,
        references: impl IntoIterator<Item = Reference>,
    ) {
        self.clear(object);
        let references: BTreeSet<Reference> = references.into_iter().collect();
        for reference in &references {
            enter(&mut self.to, reference, object);
        }
        if !references.is_empty() {
            self.of.insert(object.clone(), references);
        }
    }

    /// Takes them out.
    pub(super) fn clear(&mut self, object: &ObjectKey) {
        for reference in self.of.remove(object).into_iter().flatten() {
            leave(&mut self.to, &reference, object);
        }
    }

    /// What an object refers to.
    pub(super) fn of(&self, object: &ObjectKey) -> impl Iterator<Item = &Reference> {
        self.of.get(object).into_iter().flatten()
    }

    /// Who refers to it.
    pub(super) fn to(&self, reference: &Reference) -> impl Iterator<Item = &ObjectKey> {
        self.to.get(reference).into_iter().flatten()
    }

    /// Whether nobody refers to anything.
    pub(super) fn is_empty(&self) -> bool {
        self.to.is_empty()
    }
}

impl World {
    /// Marks those who refer to somebody who is dirty.
    pub(super) fn mark_referring(&self, dirty: &mut BTreeSet<Builder>) {
        if self.objects.references.is_empty() {
            return;
        }
        let keys = dirty.iter().filter_map(|builder| match builder {
            Builder::Object(key) => Some(Reference::Object(key.clone())),
            _ => None,
        });
        let references: Vec<Reference> = keys.collect();
        let mut namespaces = BTreeSet::new();
        for reference in &references {
            self.touch_referring(reference, dirty);
            if let Reference::Object(key) = reference
                && matches!(key.kind, Kind::Service | Kind::ServiceEntry)
            {
                namespaces.insert(key.namespace.clone());
            }
        }
        // Whoever is for whatever there is in a namespace.
        for namespace in namespaces {
            let namespace = ObjectKey::new(Kind::Namespace, "", &namespace);
            self.touch_referring(&Reference::Object(namespace), dirty);
        }
    }

    /// Marks those who refer to that.
    pub(super) fn touch_referring(&self, reference: &Reference, dirty: &mut BTreeSet<Builder>) {
        mark(dirty, self.objects.references.to(reference).cloned());
    }

    /// Who refers to a host by its name, also as a provider of the mesh, and the keys for it.
    pub(super) fn touch_host(&self, host: &str, dirty: &mut BTreeSet<Builder>) {
        self.touch_provider(host, dirty);
        self.touch_named(host, dirty);
        if !self.objects.references.is_empty() {
            self.touch_referring(&Reference::Host(host.into()), dirty);
        }
    }

    /// Who refers into a namespace.
    pub(super) fn touch_grants(&self, namespace: &str, dirty: &mut BTreeSet<Builder>) {
        self.touch_referring(&Reference::Grants(namespace.into()), dirty);
        self.touch_referring(&Reference::Grants("".into()), dirty);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refers_is_found_until_it_refers_to_something_else() {
        let key = |kind, name| ObjectKey::new(kind, "a", name);
        let (one, other) = (key(Kind::HttpRoute, "one"), key(Kind::HttpRoute, "other"));
        let service = Reference::Object(key(Kind::Service, "web"));
        let grants = Reference::Grants("b".into());
        let mut references = References::default();
        references.set(&one, [service.clone(), grants.clone()]);
        references.set(&other, [service.clone()]);
        assert_eq!(references.to(&service).collect::<Vec<_>>(), [&one, &other]);
        references.set(&one, [grants.clone()]);
        assert_eq!(references.to(&service).collect::<Vec<_>>(), [&other]);
        assert_eq!(references.to(&grants).collect::<Vec<_>>(), [&one]);
        references.clear(&one);
        references.clear(&other);
        assert!(references.is_empty() && references.of.is_empty());
    }
}
