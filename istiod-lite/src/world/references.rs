//! Who refers to what, for objects that only refer: routes, and policies of layer 7.
//!
//! Whoever is referred to and changes makes those anew who refer to it. References to what is not
//! there are kept like others: it may come.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::k8s::objects::ObjectKey;

use super::objects::{enter, leave};

/// What an object refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reference {
    /// One object, there or not. For what names a waypoint this includes who stands in front of it;
    /// for a GatewayClass, which Gateways are of it.
    Object(ObjectKey),
    /// Whoever has a host name.
    Host(Arc<str>),
    /// The ReferenceGrants of a namespace.
    Grants(Arc<str>),
    /// Which Gateways there are in a namespace; with the empty name, in all.
    Gateways(Arc<str>),
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

    /// Who refers to it.
    pub(super) fn to(&self, reference: &Reference) -> impl Iterator<Item = &ObjectKey> {
        self.to.get(reference).into_iter().flatten()
    }

    /// Whether nobody refers to anything.
    pub(super) fn is_empty(&self) -> bool {
        self.to.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use api::k8s::objects::Kind;

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
