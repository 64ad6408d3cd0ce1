//! What the responses of one stream after another do: to the mesh, and to what is asked next.
//!
//! What others name is asked for before those: policies before the addresses that name them, addresses before
//! a waypoint's resources. A server that answers in order then sends them so. For the same reason what is in
//! doubt goes of all types at once: a policy does not go while a workload that names it may still be on its way out.
//!
//! ```text
//!   part … part (more follow)         last part, or a whole response
//!        `begin`                             `take`
//!   applied where nobody sees it ────▶ applied, seen ────▶ ACK, or NACK by name
//!        └── the stream ends, or it was of another type: taken back
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::discovery::DeltaDiscoveryRequest;
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, WAYPOINT_TYPE};
use tokio::time::Instant;

use super::part::Part;
use super::{ClientConfig, ClientEvent, Demand};
use crate::change::{Step, Update};
use crate::parse::Rejected;
use crate::subscription::{Pending, Subscription, Wish};

/// A type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Policies of layer 4.
    Authorizations,
    /// Workloads and services.
    Addresses,
    /// What a waypoint does.
    Resources,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Authorizations, Self::Addresses, Self::Resources];

    fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Authorizations => AUTHORIZATION_TYPE,
            Self::Addresses => ADDRESS_TYPE,
            Self::Resources => WAYPOINT_TYPE,
        }
    }
}

/// All types that are followed, and where they are on the present stream.
pub(super) struct Types {
    followed: Vec<Followed>,
    quiet: Duration,
    /// When that which is in doubt is gone.
    pub(super) settles: Option<Instant>,
    /// The response that arrives in parts.
    taking: Option<Taking>,
}

/// One of them.
struct Followed {
    kind: Kind,
    subscription: Subscription,
    /// On this stream.
    answered: bool,
}

/// A response of which some has been taken.
#[derive(Debug, Default)]
struct Taking {
    /// Of what its resources say they are; a response says it itself only behind them.
    kind: Option<Kind>,
    type_url: String,
    nonce: String,
    pending: Pending,
    removed: Vec<String>,
    rejected: Vec<Rejected>,
    bytes: usize,
    set: usize,
}

impl Taking {
    /// Notes everything of a part but its resources.
    fn note(&mut self, part: &mut Part) {
        self.bytes += part.bytes;
        self.set += part.resources.len();
        self.removed.append(&mut part.rest.removed_resources);
        for (held, found) in [
            (&mut self.type_url, &mut part.rest.type_url),
            (&mut self.nonce, &mut part.rest.nonce),
        ] {
            if !found.is_empty() {
                *held = std::mem::take(found);
            }
        }
    }
}

impl Types {
    pub(super) fn new(config: &ClientConfig) -> Self {
        let follow = |kind: &Kind| {
            let wish = match kind {
                Kind::Addresses => config.addresses,
                Kind::Authorizations | Kind::Resources => Wish::Everything,
            };
            Followed {
                kind: *kind,
                subscription: Subscription::new(kind.type_url(), wish),
                answered: false,
            }
        };
        Self {
            followed: config.follows.iter().map(follow).collect(),
            quiet: config.quiet,
            settles: None,
            taking: None,
        }
    }

    /// Whether each type was answered on this stream.
    pub(super) fn all_answered(&self) -> bool {
        self.followed.iter().all(|followed| followed.answered)
    }

    /// Whether a response has begun that is not whole yet.
    pub(super) fn in_the_middle(&self) -> bool {
        self.taking.is_some()
    }

    /// The first requests of a new stream.
    pub(super) fn open(&mut self, config: &ClientConfig) -> Vec<DeltaDiscoveryRequest> {
        self.settles = None;
        let open = |followed: &mut Followed| {
            followed.answered = false;
            let (node, longest) = (config.node.clone(), config.largest_request);
            followed.subscription.open(node, longest)
        };
        self.followed.iter_mut().map(open).collect()
    }

    /// What is asked of the server because of demands for addresses: first what is given up, then what is wanted, because a
    /// name may be both.
    pub(super) fn demand(&mut self, demands: Vec<Demand>) -> Vec<DeltaDiscoveryRequest> {
        let Some(followed) = self.followed(Kind::Addresses) else {
            return Vec::new();
        };
        let mut wanted: BTreeSet<Arc<str>> = BTreeSet::new();
        let (mut left, mut forgotten) = (BTreeSet::new(), BTreeSet::new());
        for demand in demands {
            match demand {
                Demand::Want(name) => {
                    wanted.insert(name);
                }
                Demand::Again(name) => {
                    forgotten.insert(name.clone());
                    wanted.insert(name);
                }
                Demand::Leave(name) => {
                    wanted.remove(&name);
                    left.insert(name);
                }
                Demand::Forget(names) => {
                    names.iter().for_each(|name| {
                        wanted.remove(name);
                    });
                    forgotten.extend(names);
                }
            }
        }
        let subscription = &mut followed.subscription;
        let mut requests = Vec::new();
        if !left.is_empty() {
            requests.push(subscription.leave(left));
        }
        if !forgotten.is_empty() {
            requests.push(subscription.forget(forgotten));
        }
        if !wanted.is_empty() {
            requests.push(subscription.want(wanted));
        }
        requests
    }

    fn doubtful(&self) -> usize {
        let each = |followed: &Followed| followed.subscription.doubtful();
        self.followed.iter().map(each).sum()
    }

    /// Nothing more comes of the answers to the opening.
    pub(super) fn settle(&mut self, on_update: &mut impl FnMut(Update) -> Vec<Rejected>) {
        self.settles = None;
        let mut update = Update::default();
        for followed in &mut self.followed {
            let gone = followed.subscription.drop_doubtful();
            match followed.kind {
                Kind::Authorizations => update.authorizations.removed = gone,
                Kind::Addresses => update.addresses.removed = gone,
                Kind::Resources => update.resources.removed = gone,
            }
        }
        tracing::info!(
            authorizations = update.authorizations.removed.len(),
            addresses = update.addresses.removed.len(),
            resources = update.resources.removed.len(),
            "gone while there was no stream: the control plane does not name them"
        );
        let rejected = on_update(update);
        debug_assert!(rejected.is_empty(), "a removal cannot be refused");
    }

    fn followed(&mut self, kind: Kind) -> Option<&mut Followed> {
        self.followed
            .iter_mut()
            .find(|followed| followed.kind == kind)
    }

    /// The stream ended: what has come of a response whose end has not is taken back.
    pub(super) fn withdraw(&mut self, on_update: &mut impl FnMut(Update) -> Vec<Rejected>) {
        if self.taking.take().is_some() {
            on_update(Update::withdrawn());
        }
    }

    /// Applies a response, or a part of one; returns the answer to it when it is whole.
    pub(super) fn apply(
        &mut self,
        part: Part,
        on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
        events: &mut impl FnMut(ClientEvent<'_>),
    ) -> Option<DeltaDiscoveryRequest> {
        if part.more {
            self.begin(part, on_update);
            return None;
        }
        let in_doubt = self.doubtful();
        let were_answered = self.all_answered();
        let request = self.take(part, on_update, events)?;
        // Each part of an answer in parts names some that are held, so the wait ends: every time
        // it begins anew, fewer are left.
        let still = self.doubtful();
        if still == 0 {
            self.settles = None;
        } else if self.all_answered() && (still < in_doubt || !were_answered) {
            self.settles = Some(Instant::now() + self.quiet);
        }
        Some(request)
    }

    /// A part that others follow: applied, and not to be seen.
    fn begin(&mut self, mut part: Part, on_update: &mut impl FnMut(Update) -> Vec<Rejected>) {
        let mut taking = self.taking.take().unwrap_or_default();
        taking.note(&mut part);
        let said = |part: &Part| {
            let mut types = part
                .resources
                .iter()
                .filter_map(|found| found.content.as_ref());
            types.find_map(|(type_url, _)| Kind::of(type_url))
        };
        taking.kind = taking.kind.or_else(|| said(&part));
        // Without a type none of them is of one that was asked for: all are refused, by either.
        let kind = taking.kind.unwrap_or(Kind::Addresses);
        let mut update = self.update(kind, part, &mut taking);
        update.step = Step::Part;
        taking.rejected.extend(on_update(update));
        self.taking = Some(taking);
    }

    fn update(&mut self, kind: Kind, part: Part, taking: &mut Taking) -> Update {
        let mut update = Update::default();
        let Some(followed) = self.followed(kind) else {
            return update;
        };
        let (subscription, pending) = (&followed.subscription, &mut taking.pending);
        match kind {
            Kind::Authorizations => {
                update.authorizations.set = subscription.sort(part.resources, pending);
            }
            Kind::Addresses => update.addresses.set = subscription.sort(part.resources, pending),
            Kind::Resources => update.resources.set = subscription.sort(part.resources, pending),
        }
        update.aliases = std::mem::take(&mut pending.aliases);
        update
    }

    /// A response, or the end of one.
    fn take(
        &mut self,
        mut part: Part,
        on_update: &mut impl FnMut(Update) -> Vec<Rejected>,
        events: &mut impl FnMut(ClientEvent<'_>),
    ) -> Option<DeltaDiscoveryRequest> {
        let begun = self.taking.take();
        let in_parts = begun.is_some();
        let mut taking = begun.unwrap_or_default();
        taking.note(&mut part);
        // Not asked for: there is no subscription that an answer could belong to.
        let of = Kind::of(&taking.type_url).filter(|kind| self.followed(*kind).is_some());
        let Some(kind) = of else {
            let type_url = &taking.type_url;
            tracing::warn!(type_url, "a response of a type that was not asked for");
            if in_parts {
                on_update(Update::withdrawn());
            }
            return None;
        };
        if let Some(other) = taking.kind.filter(|other| *other != kind) {
            on_update(Update::withdrawn());
            taking.rejected.clear();
            taking.pending.refuse_all(other.type_url());
        }
        let mut update = self.update(kind, part, &mut taking);
        let removed = std::mem::take(&mut taking.removed);
        let count = removed.len();
        let removed = taking
            .pending
            .answers(std::mem::take(&mut taking.nonce), removed);
        match kind {
            Kind::Authorizations => update.authorizations.removed = removed,
            Kind::Addresses => update.addresses.removed = removed,
            Kind::Resources => update.resources.removed = removed,
        }
        if in_parts || !update.is_empty() {
            taking.rejected.extend(on_update(update));
        }
        let followed = self.followed(kind)?;
        followed.answered = true;
        let concluded = followed
            .subscription
            .conclude(taking.pending, taking.rejected);
        let (request, rejected) = concluded;
        events(ClientEvent::Applied {
            type_url: kind.type_url(),
            bytes: taking.bytes,
            set: taking.set,
            removed: count,
            rejected: &rejected,
        });
        Some(request)
    }
}

#[cfg(test)]
mod tests;
