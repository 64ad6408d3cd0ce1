//! What proxies refused, and why: kept while it stands, for the statuses of the objects it was made of.
//!
//! A refusal names its resources. It stands until the proxy took a later response that carried the resource or removed
//! it, or is gone. (One that comes back is sent what it refused again, and refuses it again.) Responses do not wait for
//! each other: what refuses one may come when the next, with the mended resource, is on its way already.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::discovery::ErrorDetail;
use api::waypoint::Refused;
use mesh::session::Reply;
use prost::Message as _;
use tokio::sync::watch;

/// Of all proxies.
pub struct Refusals {
    standing: Mutex<Standing>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Standing {
    streams: u64,
    /// By resource, as it is named on the wire, and stream.
    reasons: BTreeMap<Arc<str>, BTreeMap<u64, Arc<str>>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            standing: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Refusals {
    /// Resources that a proxy refuses, and the words of one that does.
    pub fn list(&self) -> BTreeMap<Arc<str>, Arc<str>> {
        let standing = self.lock();
        let first = |reasons: &BTreeMap<u64, Arc<str>>| reasons.values().next().cloned();
        let reasons = standing.reasons.iter();
        reasons
            .filter_map(|(name, reasons)| Some((name.clone(), first(reasons)?)))
            .collect()
    }

    /// Moves when the list is another.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Of one proxy of a gateway.
pub(super) struct Stand {
    all: Arc<Refusals>,
    stream: u64,
    /// Names, each with the last response since its refusal that carried or removed it.
    refused: BTreeMap<Arc<str>, Option<u64>>,
    /// Names in responses that were not answered yet, each with the last of those.
    under_way: HashMap<Arc<str>, u64>,
}

impl Stand {
    pub(super) fn new(all: &Arc<Refusals>) -> Self {
        let mut standing = all.lock();
        standing.streams += 1;
        Self {
            all: all.clone(),
            stream: standing.streams,
            refused: BTreeMap::new(),
            under_way: HashMap::new(),
        }
    }

    /// A response goes out.
    pub(super) fn sent(&mut self, reply: &Reply) {
        if *reply.type_url != *api::WAYPOINT_TYPE {
            return;
        }
        let Ok(nonce) = reply.nonce.parse::<u64>() else {
            return;
        };
        let names = reply.resources.iter().map(|entry| &entry.name);
        for name in names.chain(&reply.removed) {
            if let Some(last) = self.refused.get_mut(name) {
                *last = Some(nonce);
            }
            if self.under_way.len() < MOST_UNDER_WAY || self.under_way.contains_key(name) {
                self.under_way.insert(name.clone(), nonce);
            }
        }
    }

    /// The answer to a response: what it names is refused, what it could have named and does not stands no longer.
    /// `exists` tells which names are resources of the proxy's gateway: of others it has nothing to say.
    pub(super) fn answered(
        &mut self,
        nonce: &str,
        error: Option<&ErrorDetail>,
        exists: impl Fn(&str) -> bool,
    ) {
        let named: BTreeMap<String, String> = error.map(refusals).unwrap_or_default();
        let nonce: u64 = nonce.parse().unwrap_or_default();
        let good: Vec<Arc<str>> = self
            .refused
            .iter()
            .filter(|(name, sent)| {
                sent.is_some_and(|sent| sent <= nonce) && !named.contains_key(&***name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        let bad: Vec<(Arc<str>, Arc<str>)> = named
            .into_iter()
            .filter(|(name, _)| exists(name))
            .take(MOST)
            .map(|(name, reason)| (name.into(), reason.into()))
            .collect();
        self.under_way.retain(|_, sent| *sent > nonce);
        if good.is_empty() && bad.is_empty() {
            return;
        }
        let Self {
            all,
            stream,
            refused,
            under_way,
        } = self;
        all.change(|standing| {
            for name in good {
                refused.remove(&name);
                standing.remove(&name, *stream);
            }
            for (name, reason) in bad {
                let reasons = standing.reasons.entry(name.clone()).or_default();
                reasons.insert(*stream, reason);
                let since = under_way.get(&name).copied();
                refused.insert(name, since);
            }
        });
    }
}

impl Standing {
    fn remove(&mut self, name: &str, stream: u64) {
        if let Some(reasons) = self.reasons.get_mut(name) {
            reasons.remove(&stream);
            if reasons.is_empty() {
                self.reasons.remove(name);
            }
        }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if self.refused.is_empty() {
            return;
        }
        self.all.change(|standing| {
            for name in self.refused.keys() {
                standing.remove(name, self.stream);
            }
        });
    }
}

/// The resources that a refusal names, and why.
fn refusals(error: &ErrorDetail) -> BTreeMap<String, String> {
    let details = error.details.iter();
    let details = details.filter(|detail| detail.type_url == api::REFUSED_TYPE);
    let read = details.filter_map(|detail| Refused::decode(&*detail.value).ok());
    read.map(|Refused { name, mut reason }| {
        reason.truncate(reason.floor_char_boundary(LONGEST));
        (name, reason)
    })
    .collect()
}

/// Of one answer: more come with the next.
const MOST: usize = 1024;
/// Of a proxy that answers nothing; of further ones it is not remembered that they were sent.
const MOST_UNDER_WAY: usize = 1 << 16;
/// What a condition's message bears, in bytes.
const LONGEST: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(names: &[&str]) -> ErrorDetail {
        let detail = |name: &&str| {
            let refused = Refused {
                name: (*name).into(),
                reason: format!("{name} is odd"),
            };
            prost_types::Any {
                type_url: api::REFUSED_TYPE.into(),
                value: refused.encode_to_vec(),
            }
        };
        ErrorDetail {
            details: names.iter().map(detail).collect(),
            ..ErrorDetail::default()
        }
    }

    fn removal(nonce: &str, names: &[&str]) -> Reply {
        Reply {
            type_url: api::WAYPOINT_TYPE.into(),
            nonce: nonce.into(),
            version: String::new(),
            resources: Vec::new(),
            removed: names.iter().map(|name| Arc::from(*name)).collect(),
            with_aliases: false,
        }
    }

    fn standing(all: &Refusals) -> Vec<String> {
        all.list()
            .into_keys()
            .map(|name| name.to_string())
            .collect()
    }

    #[test]
    fn a_refusal_stands_until_the_proxy_took_another_version_or_is_gone() {
        let all = Arc::new(Refusals::default());
        let exists = |name: &str| name != "foreign";
        let (mut one, mut other) = (Stand::new(&all), Stand::new(&all));
        one.answered("1", Some(&refusal(&["a", "b", "foreign"])), exists);
        other.answered("1", Some(&refusal(&["a"])), exists);
        assert_eq!(standing(&all), ["a", "b"]);
        assert_eq!(&*all.list()["a"], "a is odd");

        one.answered("2", None, exists);
        assert_eq!(standing(&all), ["a", "b"], "a response that had neither");
        one.sent(&removal("3", &["a", "b"]));
        one.answered("2", None, exists);
        assert_eq!(standing(&all), ["a", "b"], "the answer to an earlier one");
        one.answered("3", Some(&refusal(&["b"])), exists);
        assert_eq!(standing(&all), ["a", "b"], "the other still refuses it");
        drop(other);
        assert_eq!(standing(&all), ["b"]);
        let before = *all.changed().borrow();
        one.answered("4", None, exists);
        assert_eq!(*all.changed().borrow(), before, "no news");
        drop(one);
        assert!(all.list().is_empty());
    }

    #[test]
    fn what_was_mended_before_its_refusal_came_does_not_stay_refused() {
        let all = Arc::new(Refusals::default());
        let mut one = Stand::new(&all);
        one.sent(&removal("1", &["a", "b"]));
        one.sent(&removal("2", &["a"]));
        one.answered("1", Some(&refusal(&["a", "b"])), |_| true);
        assert_eq!(standing(&all), ["a", "b"]);
        one.answered("2", None, |_| true);
        assert_eq!(standing(&all), ["b"], "the second was taken");
        assert!(one.under_way.is_empty());
        one.sent(&removal("3", &["b"]));
        one.answered("3", None, |_| true);
        assert!(all.list().is_empty());
    }
}
