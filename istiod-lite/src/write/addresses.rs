//! Hosts of ServiceEntries without an address get one of each family, in `.status.addresses`.
//!
//! 1. all ServiceEntries are followed; what matters of each is kept     ([`Entry`])
//! 2. who has which address is worked out purely                        ([`table`])
//! 3. what an entry's status should list and does not is patched
//!
//! Nothing is kept outside of the cluster: whoever leads next reads from the statuses what was
//! given. Every replica, and every proxy, learns of an address only from there.

mod table;

use std::pin::pin;

use api::k8s::json;
use api::k8s::objects::{Kind, Object, ObjectKey};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::table::{Entry, Given, Table};
use super::queue::{Quarrels, Queue, until};
use super::{Ground, said};
use crate::cluster::watch::{config, steady};
use crate::translate::service_entry::ServiceEntry;

const MANAGER: &str = "ambit-addresses";
/// So many at a time.
const AT_A_TIME: usize = 8;

/// Runs while we lead.
pub(super) async fn write(ground: Ground) {
    let mut kinds = ground.kinds.clone();
    loop {
        let defined = kinds.borrow_and_update().get(&Kind::ServiceEntry).cloned();
        let serve = async {
            match &defined {
                Some(resource) => serve(&ground, resource).await,
                None => std::future::pending().await,
            }
        };
        let other = async {
            let same = |it: &crate::cluster::Kinds| it.get(&Kind::ServiceEntry) == defined.as_ref();
            kinds.wait_for(|kinds| !same(kinds)).await.is_ok()
        };
        tokio::select! {
            () = serve => {}
            changed = other => if !changed { return },
        }
    }
}

/// As long as ServiceEntries are defined in this way.
async fn serve(ground: &Ground, resource: &ApiResource) {
    let all = Api::<DynamicObject>::all_with(ground.connection.watching.clone(), resource);
    let name = format!("{}.{}", resource.plural, resource.group);
    let mut events = pin!(steady(
        watcher::watcher(all, config()),
        &ground.health,
        &name
    ));
    let mut table = Table::default();
    let mut listing = Vec::new();
    let (mut queue, mut quarrels) = (Queue::default(), Quarrels::default());
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < AT_A_TIME
            && let Some(key) = queue.take(Instant::now())
        {
            match table.due(&key) {
                Some((version, given)) => {
                    running.push(patch(ground, resource, key, version, given))
                }
                None => queue.done(&key),
            }
        }
        let changed = tokio::select! {
            Some(event) = events.next() => match event {
                Event::Init => {
                    listing.clear();
                    Vec::new()
                }
                Event::InitApply(object) => {
                    listing.push(read(object));
                    Vec::new()
                }
                Event::InitDone => table.is(std::mem::take(&mut listing)),
                Event::Apply(object) => {
                    let (key, entry) = read(object);
                    table.set(key, entry)
                }
                Event::Delete(object) => {
                    let (key, _) = read(object);
                    quarrels.forget(&key);
                    table.gone(&key)
                }
            },
            Some((key, outcome)) = running.next() => {
                let now = Instant::now();
                let again = match outcome {
                    Ok(false) => false,
                    // What it is now the watch tells, in its turn: this answer may come behind what was written since.
                    Ok(true) => {
                        ground.metrics.wrote("addresses", true);
                        quarrels.wrote(&key, now)
                    }
                    Err(error) => {
                        ground.metrics.wrote("addresses", false);
                        let error = said(&error);
                        tracing::warn!(object = %key, error, "addresses not written; tried again");
                        true
                    }
                };
                if again { queue.failed(&key, now) } else { queue.done(&key) }
                Vec::new()
            }
            () = until(queue.due()) => Vec::new(),
        };
        for key in changed {
            queue.add(key, Instant::now());
        }
        if table.take_exhausted() {
            tracing::error!(
                "no automatic address is left; hosts without one can only be reached by name through a waypoint"
            );
        }
    }
}

/// What matters of a ServiceEntry.
fn read(object: DynamicObject) -> (ObjectKey, Entry) {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let key = ObjectKey::new(
        Kind::ServiceEntry,
        &namespace,
        metadata.name.as_deref().unwrap_or_default(),
    );
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    let version = metadata.resource_version.clone().unwrap_or_default();
    let given = given(object.data.get("status"));
    let taken = texts(&object.data["spec"]["addresses"]).filter_map(|it| it.parse().ok());
    let taken = taken.collect();
    let value = serde_json::to_value(&object).unwrap_or_default();
    // Of one that is refused nothing changes: neither do proxies see anything of it.
    let wanting = match json::read(Kind::ServiceEntry, &value) {
        Ok(Object::ServiceEntry(entry)) => {
            let entry = ServiceEntry::read(&entry);
            let hosts = entry
                .hosts
                .iter()
                .filter(|host| entry.wants_addresses(host));
            Some(hosts.cloned().collect())
        }
        _ => None,
    };
    let entry = Entry {
        created,
        version,
        wanting,
        given,
        taken,
    };
    (key, entry)
}

fn given(status: Option<&Value>) -> Vec<Given> {
    let list = status.and_then(|status| status["addresses"].as_array());
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let given = list.into_iter().flatten();
    given
        .map(|it| Given {
            // As hosts are read.
            host: text(it, "host").to_ascii_lowercase(),
            value: text(it, "value"),
        })
        .collect()
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Writes one status; `false` when the object went, or was written by somebody else first: then we hear
/// of it.
async fn patch(
    ground: &Ground,
    resource: &ApiResource,
    key: ObjectKey,
    version: String,
    given: Vec<Given>,
) -> (ObjectKey, Result<bool, kube::Error>) {
    let client = ground.connection.client.clone();
    let entries = Api::<DynamicObject>::namespaced_with(client, &key.namespace, resource);
    let given: Vec<Value> = given
        .iter()
        .map(|it| json!({"host": it.host, "value": it.value}))
        .collect();
    let patch = json!({
        "metadata": {"resourceVersion": version},
        "status": {"addresses": given},
    });
    let ours = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let outcome = match entries
        .patch_status(&key.name, &ours, &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    };
    (key, outcome)
}
