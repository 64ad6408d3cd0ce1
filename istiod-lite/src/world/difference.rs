//! What a rebuild changes: the resources as they were before it, of those that it touched.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Resource;

/// What resources were before a rebuild touched them.
#[derive(Debug, Default)]
pub(super) struct Difference {
    before: BTreeMap<Arc<str>, Option<Resource>>,
}

impl Difference {
    pub(super) fn take_out(
        &mut self,
        resources: &mut HashMap<Arc<str>, Resource>,
        names: &[Arc<str>],
    ) {
        for name in names {
            let resource = resources.remove(name);
            self.before.entry(name.clone()).or_insert(resource);
        }
    }

    pub(super) fn put_in(
        &mut self,
        resources: &mut HashMap<Arc<str>, Resource>,
        made: Vec<Resource>,
    ) -> Vec<Arc<str>> {
        let mut names = Vec::with_capacity(made.len());
        for resource in made {
            let name = resource.name.clone();
            let before = resources.insert(name.clone(), resource);
            self.before.entry(name.clone()).or_insert(before);
            names.push(name);
        }
        names
    }

    pub(super) fn changed(self, resources: &HashMap<Arc<str>, Resource>) -> Vec<Arc<str>> {
        self.before
            .into_iter()
            .filter(|(name, before)| resources.get(name) != before.as_ref())
            .map(|(name, _)| name)
            .collect()
    }
}
