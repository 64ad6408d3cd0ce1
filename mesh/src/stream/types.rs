//! What the responses of one stream after another do: to the mesh, and to what is asked next.
//!
//! Policies are asked for before addresses: a server that answers in order then sends them before
//! the workloads that name them. For the same reason what is in doubt goes of both types at once:
//! a policy does not go while a workload that names it may still be on its way out.
//!
//! ```text
//!   part … part (more follow)         last part, or a whole response
//!        `begin`                             `take`
//!   applied where nobody sees it ────▶ applied, seen ────▶ ACK, or NACK by name
//!        └── the stream ends, or it was of another type: taken back
//! ```

use std::time::Duration;

use api::discovery::DeltaDiscoveryRequest;
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use tokio::time::Instant;

use super::part::Part;
use super::{ClientConfig, ClientEvent};
use crate::change::{Step, Update};
use crate::parse::Rejected;
use crate::subscription::{Pending, Subscription, Wish};

/// Both types, and where they are on the present stream.
pub(super) struct Types {
    authorizations: Subscription,
    pub(super) addresses: Subscription,
    pub(super) answered: Answered,
    quiet: Duration,
    /// When that which is in doubt is gone.
    pub(super) settles: Option<Instant>,
    /// The response that arrives in parts.
    taking: Option<Taking>,
}

/// The types there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Authorizations,
    Addresses,
}

impl Kind {
    fn of(type_url: &str) -> Option<Self> {
        match type_url {
            AUTHORIZATION_TYPE => Some(Self::Authorizations),
            ADDRESS_TYPE => Some(Self::Addresses),
            _ => None,
        }
    }

    fn type_url(self) -> &'static str {
        match self {
            Self::Authorizations => AUTHORIZATION_TYPE,
            Self::Addresses => ADDRESS_TYPE,
        }
    }
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

/// Which types were answered on this stream.
#[derive(Debug, Default)]
pub(super) struct Answered {
    authorizations: bool,
    addresses: bool,
}

impl Answered {
    pub(super) fn all(&self) -> bool {
        self.authorizations && self.addresses
    }
}

impl Types {
    pub(super) fn new(config: &ClientConfig) -> Self {
        Self {
            authorizations: Subscription::new(AUTHORIZATION_TYPE, Wish::Everything),
            addresses: Subscription::new(ADDRESS_TYPE, config.addresses),
            answered: Answered::default(),
            quiet: config.quiet,
            settles: None,
            taking: None,
        }
    }

    /// Whether a response has begun that is not whole yet.
    pub(super) fn in_the_middle(&self) -> bool {
        self.taking.is_some()
    }

    /// The first requests of a new stream.
    pub(super) fn open(&mut self, config: &ClientConfig) -> [DeltaDiscoveryRequest; 2] {
        self.answered = Answered::default();
        self.settles = None;
        let longest = config.largest_request;
        [&mut self.authorizations, &mut self.addresses]
            .map(|subscription| subscription.open(config.node.clone(), longest))
    }

    fn doubtful(&self) -> usize {
        self.authorizations.doubtful() + self.addresses.doubtful()
    }

    /// Nothing more comes of the answers to the opening.
    pub(super) fn settle(&mut self, on_update: &mut impl FnMut(Update) -> Vec<Rejected>) {
        self.settles = None;
        let mut update = Update::default();
        update.authorizations.removed = self.authorizations.drop_doubtful();
        update.addresses.removed = self.addresses.drop_doubtful();
        tracing::info!(
            authorizations = update.authorizations.removed.len(),
            addresses = update.addresses.removed.len(),
            "gone while there was no stream: the control plane does not name them"
        );
        let rejected = on_update(update);
        debug_assert!(rejected.is_empty(), "a removal cannot be refused");
    }

    fn subscription(&mut self, kind: Kind) -> &mut Subscription {
        match kind {
            Kind::Authorizations => &mut self.authorizations,
            Kind::Addresses => &mut self.addresses,
        }
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
        let were_answered = self.answered.all();
        let request = self.take(part, on_update, events)?;
        // Each part of an answer in parts names some that are held, so the wait ends: every time
        // it begins anew, fewer are left.
        let still = self.doubtful();
        if still == 0 {
            self.settles = None;
        } else if self.answered.all() && (still < in_doubt || !were_answered) {
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
        let mut update = self.update(taking.kind.unwrap_or(Kind::Addresses), part, &mut taking);
        update.step = Step::Part;
        taking.rejected.extend(on_update(update));
        self.taking = Some(taking);
    }

    fn update(&mut self, kind: Kind, part: Part, taking: &mut Taking) -> Update {
        let mut update = Update::default();
        match kind {
            Kind::Authorizations => {
                update.authorizations.set =
                    (self.authorizations).sort(part.resources, &mut taking.pending);
            }
            Kind::Addresses => {
                update.addresses.set = self.addresses.sort(part.resources, &mut taking.pending);
            }
        }
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
        let Some(kind) = Kind::of(&taking.type_url) else {
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
            Kind::Authorizations => {
                self.answered.authorizations = true;
                update.authorizations.removed = removed;
            }
            Kind::Addresses => {
                self.answered.addresses = true;
                update.addresses.removed = removed;
            }
        }
        if in_parts || !update.is_empty() {
            taking.rejected.extend(on_update(update));
        }
        let subscription = self.subscription(kind);
        let (request, rejected) = subscription.conclude(taking.pending, taking.rejected);
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
