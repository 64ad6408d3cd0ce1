//! One object by its name, as it is and each time it changes.

use std::fmt::Debug;
use std::future::ready;

use futures_util::{Stream, StreamExt as _};
use kube::Api;
use kube::runtime::watcher::{self, Event};
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
