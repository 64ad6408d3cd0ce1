//! Connections whose caller has not proven anything yet.
//!
//! TLS asks nothing of a client, so anybody who reaches the port can hold a connection. A stranger
//! becomes a caller with its first good token; until then it may stay [`PATIENCE`] long, and when
//! there are too many the oldest is sent away: a proxy proves itself in milliseconds, so those that
//! are old are not proxies, and a flood of them keeps nobody out.

use std::collections::VecDeque;
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

/// The strangers of a port, oldest first; also some that are none any more.
#[derive(Default)]
pub(super) struct Strangers(VecDeque<Weak<Stranger>>);

impl Strangers {
    pub(super) fn admit(&mut self) -> Arc<Stranger> {
        if self.0.len() >= MOST {
            let unproven =
                |stranger: &Weak<Stranger>| stranger.upgrade().is_some_and(|it| !it.is_proven());
            self.0.retain(unproven);
        }
        let oldest = if self.0.len() >= MOST {
            self.0.pop_front()
        } else {
            None
        };
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            oldest.away.cancel();
        }
        let stranger = Arc::new(Stranger::default());
        self.0.push_back(Arc::downgrade(&stranger));
        stranger
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

    #[tokio::test]
    async fn the_oldest_goes_when_there_are_too_many_and_callers_do_not_count() {
        let mut strangers = Strangers::default();
        let admitted: Vec<_> = (0..MOST).map(|_| strangers.admit()).collect();
        admitted[0].prove();
        let mut more: Vec<_> = vec![strangers.admit()];
        let gone = |strangers: &[Arc<Stranger>]| {
            strangers
                .iter()
                .filter(|it| it.must_go().now_or_never().is_some())
                .count()
        };
        assert_eq!(gone(&admitted), 0, "the caller made room");
        more.push(strangers.admit());
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
            drop(strangers.admit());
        }
        assert!(strangers.0.len() <= MOST);
        let stays = strangers.admit();
        for _ in 0..MOST {
            drop(strangers.admit());
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
