//! Connections whose caller has not proven anything yet.
//!
//! TLS asks nothing of a client, so anybody who reaches the port can hold a connection. A stranger
//! becomes a caller with its first good token; until then it may stay [`PATIENCE`] long, and when
//! there are too many, of those from the address with the most the oldest is sent away: a proxy proves itself in
//! milliseconds, so those that are old are not proxies, and who floods the port makes room for the others itself.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// One connection, seen by who may prove it; in the extensions of its requests.
#[derive(Debug, Default)]
pub struct Stranger {
    proven: AtomicBool,
    away: CancellationToken,
}

impl Stranger {
    /// A good token came over this connection.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Returns when the connection must be closed; never once it is proven.
    pub(super) async fn must_go(&self) {
        let _ = tokio::time::timeout(PATIENCE, self.away.cancelled()).await;
        if self.is_proven() {
            std::future::pending().await
        }
    }

    fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }
}

/// The strangers of a port and whence they came, oldest first; also some that are none any more.
#[derive(Default)]
pub(super) struct Strangers(VecDeque<(IpAddr, Weak<Stranger>)>);

impl Strangers {
    pub(super) fn admit(&mut self, from: IpAddr) -> Arc<Stranger> {
        if self.0.len() >= MOST {
            let unproven =
                |stranger: &Weak<Stranger>| stranger.upgrade().is_some_and(|it| !it.is_proven());
            self.0.retain(|(_, stranger)| unproven(stranger));
        }
        if self.0.len() >= MOST {
            let at = self.in_the_way();
            let goes = self.0.remove(at).and_then(|(_, goes)| goes.upgrade());
            if let Some(goes) = goes {
                goes.away.cancel();
            }
        }
        let stranger = Arc::new(Stranger::default());
        self.0.push_back((from, Arc::downgrade(&stranger)));
        stranger
    }

    /// The oldest from where the most have come.
    fn in_the_way(&self) -> usize {
        let mut counts = HashMap::new();
        for (from, _) in &self.0 {
            *counts.entry(*from).or_insert(0_usize) += 1;
        }
        let most = counts.values().max();
        let is_theirs = |(from, _): &(IpAddr, _)| counts.get(from) == most;
        self.0.iter().position(is_theirs).unwrap_or_default()
    }
}

/// A pod may start slowly, but not after it has dialled.
const PATIENCE: Duration = Duration::from_secs(30);
/// Each costs a task and, while it shakes hands, some 20 KiB.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn who_floods_the_port_makes_room_for_others_itself() {
        let mut strangers = Strangers::default();
        let there = |last: u8| IpAddr::from([10, 0, 0, last]);
        let proxies: Vec<_> = (0..20).map(|last| strangers.admit(there(last))).collect();
        let flood: Vec<_> = (0..10 * MOST).map(|_| strangers.admit(HERE)).collect();
        let late = strangers.admit(there(99));
        let is_gone = |it: &Arc<Stranger>| it.must_go().now_or_never().is_some();
        assert!(!proxies.iter().any(is_gone) && !is_gone(&late));
        let left = flood.iter().filter(|it| !is_gone(it)).count();
        assert_eq!(left, MOST - proxies.len() - 1);
        assert!(!is_gone(&flood[10 * MOST - 1]), "the oldest of them went");
    }

    #[tokio::test]
    async fn the_oldest_goes_when_there_are_too_many_and_callers_do_not_count() {
        let mut strangers = Strangers::default();
        let admitted: Vec<_> = (0..MOST).map(|_| strangers.admit(HERE)).collect();
        admitted[0].prove();
        let mut more: Vec<_> = vec![strangers.admit(HERE)];
        let gone = |strangers: &[Arc<Stranger>]| {
            strangers
                .iter()
                .filter(|it| it.must_go().now_or_never().is_some())
                .count()
        };
        assert_eq!(gone(&admitted), 0, "the caller made room");
        more.push(strangers.admit(HERE));
        assert_eq!(gone(&admitted), 1);
        assert!(
            admitted[1].must_go().now_or_never().is_some(),
            "the oldest stranger"
        );
        assert_eq!(gone(&more), 0);
    }

    #[tokio::test]
    async fn connections_that_ended_do_not_count() {
        let mut strangers = Strangers::default();
        for _ in 0..10 * MOST {
            drop(strangers.admit(HERE));
        }
        assert!(strangers.0.len() <= MOST);
        let stays = strangers.admit(HERE);
        for _ in 0..MOST {
            drop(strangers.admit(HERE));
        }
        assert!(stays.must_go().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_never_proves_anything_goes_in_the_end() {
        let (silent, caller) = (Stranger::default(), Stranger::default());
        caller.prove();
        silent.must_go().await;
        let stayed = tokio::time::timeout(10 * PATIENCE, caller.must_go()).await;
        assert!(stayed.is_err());
    }
}
