//! Which services other networks share: GLOBAL ones, by their labels and those of their namespace.

use api::k8s::objects::{Kind, ObjectKey};
use api::workload::Extension;

use super::World;
use super::objects::Namespace;
use crate::translate::Labels;
use crate::translate::scope::{self, Scope};

impl World {
    /// Of a Service or ServiceEntry.
    pub(super) fn scope(&self, key: &ObjectKey) -> Scope {
        let namespace = ObjectKey::new(Kind::Namespace, "", &key.namespace);
        self.scope_in(key, self.objects.namespaces.get(&namespace))
    }

    /// The same if its namespace were so.
    pub(super) fn scope_in(&self, key: &ObjectKey, namespace: Option<&Namespace>) -> Scope {
        let scopes = &self.settings.scopes;
        let labels = namespace.map(|it| &it.labels);
        if let Some(service) = self.objects.services.get(key) {
            return scopes.of(&service.candidate, labels);
        }
        match self.objects.service_entries.get(key) {
            Some(entry) => scopes.of(&scopes.candidate_entry(entry.labels()), labels),
            None => Scope::Local,
        }
    }

    /// What gateways are told of it; nothing of a LOCAL one.
    pub(super) fn global(&self, key: &ObjectKey) -> Option<Extension> {
        (self.scope(key) == Scope::Global).then(scope::extension)
    }

    /// What there is to say of a workload on `network` whose labels make it serve services that are LOCAL.
    pub(super) fn kept_apart(
        &self,
        workload: &ObjectKey,
        labels: &Labels,
        network: &str,
    ) -> Vec<String> {
        if !self.is_abroad(network) {
            return Vec::new();
        }
        let selectors = &self.objects.service_selectors;
        let selecting = selectors.selecting(&workload.namespace, labels);
        let local = selecting
            .into_iter()
            .filter(|it| self.scope(it) == Scope::Local);
        local.map(|it| scope::kept_apart(it, network)).collect()
    }
}
