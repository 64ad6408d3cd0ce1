//! Who is asked for because a pod asked for his name (`dns`): a question waits for a moment only, and then goes on without.
//!
//! A control plane that left a question unanswered is waited for no more until it says something, whatever it may be: so one
//! that is mute costs each of a pod's questions nothing, and all of them together one moment.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use mesh::{NamespacedHost, Snapshot};
use tokio::time::Instant;

use super::book::{For, Told};
use super::{NotTold, OnDemand, Whom, lock};

impl OnDemand {
    /// Those of `hosts` of whom it is not known whether they are there. None while there is nobody to be asked.
    pub(crate) fn unsettled(
        &self,
        snapshot: &Snapshot,
        mut hosts: Vec<NamespacedHost>,
    ) -> Vec<NamespacedHost> {
        if !self.connected.load(Relaxed) {
            return Vec::new();
        }
        let (mut book, now) = (lock(&self.book), Instant::now());
        hosts.retain(|host| {
            let (name, whom) = (host.to_string(), Whom::Named(host));
            match book.known(&name, now) {
                None => true,
                // It has gone since.
                Some(Told::There) if !whom.is_known(snapshot) => {
                    book.doubt(&name, now);
                    true
                }
                Some(_) => false,
            }
        });
        hosts
    }

    /// Asks for them all. Whether all was said; what comes later is known to whoever asks again.
    pub(crate) async fn settle(&self, hosts: &[NamespacedHost]) -> bool {
        let words = self.words.load(Relaxed);
        let wait = self.patience();
        let asking = hosts.iter().map(|host| async move {
            let name = host.to_string();
            self.ask_for(&name, For::Question, wait).await
        });
        let told = join_all(asking).await;
        if told
            .iter()
            .any(|told| matches!(told, Err(NotTold::Silent(..))))
        {
            self.mute_since.store(words, Relaxed);
        }
        told.iter().all(Result::is_ok)
    }

    /// Somebody asks for more names than the control plane should hear of.
    pub(crate) fn passed_over(&self) {
        self.count("too_much");
    }

    /// How long a question waits now.
    pub(super) fn patience(&self) -> Duration {
        match self.mute_since.load(Relaxed) == self.words.load(Relaxed) {
            true => Duration::ZERO,
            false => MOMENT.min(self.terms.wait),
        }
    }
}

/// Many times the way to the control plane and back, and with all that the upstream resolvers may take not more than apps
/// wait before they ask again.
const MOMENT: Duration = Duration::from_millis(500);
