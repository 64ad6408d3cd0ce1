//! Objects as they are and each time they change: one by its name, or all of a kind.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::ready;

use futures_util::{Stream, StreamExt as _, stream};
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Config, Event};
use serde::de::DeserializeOwned;

use crate::cluster::Health;
use crate::cluster::watch::{config, steady};

/// The object `name`; `None` while there is none. Failures are reported to `health` and tried again.
///
/// The watch is limited to that name, so that a right limited to it is enough.
pub(crate) fn object<K>(
    objects: Api<K>,
    name: &str,
    health: &Health,
    resource: &str,
) -> impl Stream<Item = Option<K>> + Send + use<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let named = config().fields(&format!("metadata.name={name}"));
    let events = steady(watcher::watcher(objects, named), health, resource);
    // What a list does not hold is gone, also when nobody told us.
    let states = events.scan(false, |listed, event| {
        ready(Some(match event {
            Event::Init => {
                *listed = false;
                None
            }
            Event::InitApply(object) => {
                *listed = true;
                Some(Some(object))
            }
            Event::InitDone => (!*listed).then_some(None),
            Event::Apply(object) => Some(Some(object)),
            Event::Delete(_) => Some(None),
        }))
    });
    states.filter_map(ready)
}

/// Something happened to one of many.
#[derive(Debug)]
pub(super) enum Change {
    /// It is so now.
    Is(Box<DynamicObject>),
    /// There is no such object any more: namespace and name.
    Gone(String, String),
    /// All that there are have been told.
    Listed,
}

/// All objects that `config` selects. What a list that was read anew does not hold is told to be gone.
pub(super) fn all(
    objects: Api<DynamicObject>,
    config: Config,
    health: &Health,
    resource: &str,
) -> impl Stream<Item = Change> + Send + use<> {
    let events = steady(watcher::watcher(objects, config), health, resource);
    let changes = events.scan(Roll::default(), |roll, event| ready(Some(roll.hear(event))));
    changes.flat_map(stream::iter)
}

/// Who is there, by namespace and name.
#[derive(Default)]
struct Roll {
    there: BTreeSet<(String, String)>,
    /// Of those, who was not in the list that is being read.
    unheard: BTreeSet<(String, String)>,
}

impl Roll {
    fn hear(&mut self, event: Event<DynamicObject>) -> Vec<Change> {
        match event {
            Event::Init => {
                self.unheard = self.there.clone();
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let name = name(&object);
                self.unheard.remove(&name);
                self.there.insert(name);
                vec![Change::Is(Box::new(object))]
            }
            Event::InitDone => {
                let gone = std::mem::take(&mut self.unheard);
                self.there.retain(|it| !gone.contains(it));
                let gone = gone
                    .into_iter()
                    .map(|(space, name)| Change::Gone(space, name));
                gone.chain([Change::Listed]).collect()
            }
            Event::Delete(object) => {
                let (namespace, name) = name(&object);
                self.there.remove(&(namespace.clone(), name.clone()));
                vec![Change::Gone(namespace, name)]
            }
        }
    }
}

fn name(object: &DynamicObject) -> (String, String) {
    let metadata = &object.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}
