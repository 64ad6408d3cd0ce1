//! What the proxies of gateways refuse, said of the objects that it was made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::k8s::objects::{Kind, ObjectKey};

use super::{Builder, Changed, World};
use crate::status::{Condition, Desired, PROXY_ACCEPTED};

/// By object: one refusal of each gateway, of the resource that comes first.
#[derive(Debug, Default)]
pub(super) struct RefusedByProxies(BTreeMap<ObjectKey, BTreeMap<Arc<str>, Arc<str>>>);

impl World {
    /// Resources that proxies refuse, by the names they have on the wire, and why: all of them, each time. What is
    /// said of the objects they were made of changes with it.
    pub fn note_refused_by_proxies(&mut self, refused: BTreeMap<Arc<str>, Arc<str>>) -> Changed {
        let mut by_object: BTreeMap<ObjectKey, BTreeMap<Arc<str>, Arc<str>>> = BTreeMap::new();
        for (name, reason) in refused {
            if let Some((gateway, object)) = behind(&name) {
                let reasons = by_object.entry(object).or_default();
                reasons.entry(gateway.into()).or_insert(reason);
            }
        }
        let before = std::mem::replace(&mut self.refused_by_proxies.0, by_object);
        let now = &self.refused_by_proxies.0;
        let objects: BTreeSet<&ObjectKey> = before.keys().chain(now.keys()).collect();
        let moved = objects
            .into_iter()
            .filter(|key| before.get(key) != now.get(key))
            .cloned();
        let dirty: BTreeSet<Builder> = moved.map(Builder::Object).collect();
        if dirty.is_empty() {
            return Changed::default();
        }
        self.rebuild(dirty)
    }

    /// Adds to what is said of an object that proxies refuse something of it: to each parent of a route, to the
    /// conditions of others.
    pub(super) fn say_refused_by_proxies(
        &self,
        key: &ObjectKey,
        said: Option<Desired>,
    ) -> Option<Desired> {
        let Some(reasons) = self.refused_by_proxies.0.get(key) else {
            return said;
        };
        let words = reasons
            .iter()
            .map(|(gateway, reason)| format!("{gateway}: {reason}"));
        let words: Vec<String> = words.take(SHOWN).collect();
        let condition = Condition {
            r#type: PROXY_ACCEPTED,
            status: false,
            reason: "RefusedByProxy".to_owned(),
            message: format!(
                "{}; there the last version without this fault stays in force, and if there was none what it is for is closed",
                words.join("; ")
            ),
        };
        let mut said = said.unwrap_or_default();
        if said.parents.is_empty() {
            said.conditions.push(condition);
        } else {
            for parent in &mut said.parents {
                parent.conditions.push(condition.clone());
            }
        }
        Some(said)
    }
}

/// The gateway and the object of a resource: `namespace/gateway/kind/namespace/name…`, the kind in lower case.
fn behind(name: &str) -> Option<(&str, ObjectKey)> {
    let gateway = mesh::gateway_of(name)?;
    let mut parts = mesh::key_of(name, gateway)?.split('/');
    let kind = parts.next()?;
    let kind = Kind::ALL
        .into_iter()
        .find(|known| known.name().eq_ignore_ascii_case(kind))?;
    let (namespace, name) = (parts.next()?, parts.next()?);
    Some((gateway, ObjectKey::new(kind, namespace, name)))
}

/// Gateways that are named.
const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_behind_a_resource_is_in_its_name() {
        let (gateway, object) = behind("shop/way/gateway/other/name/0/1").unwrap();
        assert_eq!(gateway, "shop/way");
        assert_eq!(object, ObjectKey::new(Kind::Gateway, "other", "name"));
        for name in ["shop/way", "shop/way/provider/zipkin", "shop/way/gateway/x"] {
            assert_eq!(behind(name), None, "{name}");
        }
    }
}
