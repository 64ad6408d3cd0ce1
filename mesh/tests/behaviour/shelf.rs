//! A catalog in memory: resources by type and name.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{Catalog, Entry};

/// The resources.
#[derive(Debug, Default)]
pub(crate) struct Shelf(pub(crate) BTreeMap<String, BTreeMap<Arc<str>, Arc<Entry>>>);

impl Shelf {
    pub(crate) fn set(&mut self, type_url: &str, entry: Entry) {
        self.0
            .entry(type_url.to_owned())
            .or_default()
            .insert(entry.name.clone(), Arc::new(entry));
    }

    pub(crate) fn remove(&mut self, type_url: &str, name: &str) {
        self.0.entry(type_url.to_owned()).or_default().remove(name);
    }
}

impl Catalog for Shelf {
    fn version(&self) -> &str {
        "1"
    }

    fn serves(&self, type_url: &str) -> bool {
        type_url.starts_with("type.googleapis.com/istio.") || type_url == api::WAYPOINT_TYPE
    }

    fn all<'a>(&'a self, type_url: &str) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        Box::new(self.0.get(type_url).into_iter().flat_map(BTreeMap::values))
    }

    fn named(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>> {
        self.0.get(type_url)?.get(name)
    }
}

/// An entry of that name and content, in nobody's way.
pub(crate) fn entry(name: &str, content: &str) -> Entry {
    Entry {
        name: Arc::from(name),
        version: Arc::from(content),
        encoded: content.as_bytes().to_vec().into(),
        aliases: [].into(),
        node: None,
        services: [].into(),
    }
}
