//! Pure: who holds a Lease, and what to do about it.
//!
//! ```text
//!             nobody holds it, or its life is over as we saw it
//!   waiting ────────────────────── Acquire ───────────────────────► leading ─┐ Renew
//!      ▲                                                               │  ▲──┘
//!      └──────── Yield: another holds it, or our last renewal is too old ─┘
//! ```
//!
//! Times written into a Lease are for people. How long a Lease was not renewed is measured by the
//! clock of who looks, from the moment it saw the last change; so clocks that disagree do no harm.
//! And who leads measures from the moment its last renewal *began*, which no other can have seen
//! earlier: it has yielded ([`GIVE_UP`]) before anybody may acquire ([`LIFE`]).

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use tokio::time::Instant;

/// How long a Lease that is not renewed must be left alone.
pub(super) const LIFE: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// Without a renewal for this long, who leads stops. The difference to [`LIFE`] is for requests
/// that are on their way.
pub(super) const GIVE_UP: Duration = Duration::from_secs(10);

/// A Lease as we saw it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// Who holds it; empty where nobody does.
    holder: String,
    /// How long its holder asked to be left alone without a renewal.
    life: Duration,
    /// Which version of the object this is.
    version: String,
    /// When we saw this version first.
    at: Instant,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write our name into it.
    Acquire,
    /// Write it again.
    Renew,
    /// Nothing before this long, unless the Lease changes.
    Wait(Duration),
    /// Stop leading.
    Yield,
}

impl Seen {
    /// The Lease as it is at `now`; what was seen `before` says since when.
    pub(super) fn new(lease: &Lease, before: Option<&Self>, now: Instant) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let same = before.filter(|before| before.version == version);
        let seconds = spec.lease_duration_seconds.unwrap_or_default().max(1);
        Self {
            holder: spec.holder_identity.unwrap_or_default(),
            life: Duration::from_secs(u64::try_from(seconds).unwrap_or(1)),
            version,
            at: same.map_or(now, |before| before.at),
        }
    }
}

/// What `me` should do about a Lease. `renewed`: when our last successful renewal began, if we lead.
pub(super) fn evaluate(
    lease: Option<&Seen>,
    renewed: Option<Instant>,
    me: &str,
    now: Instant,
) -> Step {
    let holder = lease.map(|lease| lease.holder.as_str()).unwrap_or_default();
    let Some(renewed) = renewed else {
        let left = lease.map_or(Duration::ZERO, |lease| {
            (lease.at + lease.life).saturating_duration_since(now)
        });
        // Our own name without our knowing it: an answer was lost on the way.
        return if holder.is_empty() || holder == me || left.is_zero() {
            Step::Acquire
        } else {
            Step::Wait(left)
        };
    };
    let age = now.saturating_duration_since(renewed);
    if holder != me || age >= GIVE_UP {
        Step::Yield
    } else if age >= RENEW {
        Step::Renew
    } else {
        Step::Wait(RENEW - age)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lease(holder: &str, version: u64) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.to_string());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(holder.to_owned());
        spec.lease_duration_seconds = Some(15);
        lease
    }

    #[test]
    fn what_is_done_follows_from_holder_and_age() {
        let start = Instant::now();
        let at = |after| start + seconds(after);
        let held = |holder| Some(Seen::new(&lease(holder, 1), None, start));
        let cases = [
            ("no lease", None, None, 0, Step::Acquire),
            ("released", held(""), None, 0, Step::Acquire),
            (
                "another's, fresh",
                held("b"),
                None,
                0,
                Step::Wait(seconds(15)),
            ),
            (
                "another's, for a while",
                held("b"),
                None,
                14,
                Step::Wait(seconds(1)),
            ),
            (
                "another's, its life over",
                held("b"),
                None,
                15,
                Step::Acquire,
            ),
            ("ours, the answer lost", held("a"), None, 3, Step::Acquire),
            (
                "ours, just renewed",
                held("a"),
                Some(at(0)),
                1,
                Step::Wait(seconds(4)),
            ),
            ("ours, due", held("a"), Some(at(0)), 5, Step::Renew),
            (
                "ours, renewals fail",
                held("a"),
                Some(at(0)),
                9,
                Step::Renew,
            ),
            ("ours, too old", held("a"), Some(at(0)), 10, Step::Yield),
            ("taken from us", held("b"), Some(at(0)), 1, Step::Yield),
            ("deleted under us", None, Some(at(0)), 1, Step::Yield),
        ];
        for (what, seen, renewed, now, expected) in cases {
            assert_eq!(
                evaluate(seen.as_ref(), renewed, "a", at(now)),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn a_lease_that_is_seen_again_unchanged_does_not_grow_younger() {
        let start = Instant::now();
        let first = Seen::new(&lease("b", 1), None, start);
        let again = Seen::new(&lease("b", 1), Some(&first), start + seconds(14));
        assert_eq!(
            evaluate(Some(&again), None, "a", start + seconds(15)),
            Step::Acquire
        );
        let renewed = Seen::new(&lease("b", 2), Some(&again), start + seconds(14));
        let step = evaluate(Some(&renewed), None, "a", start + seconds(15));
        assert_eq!(step, Step::Wait(seconds(14)));
    }

    #[test]
    fn a_lease_without_a_duration_is_not_taken_at_once() {
        let mut odd = lease("b", 1);
        for given in [None, Some(0), Some(-5)] {
            odd.spec.get_or_insert_default().lease_duration_seconds = given;
            let now = Instant::now();
            let seen = Seen::new(&odd, None, now);
            assert_eq!(
                evaluate(Some(&seen), None, "a", now),
                Step::Wait(seconds(1))
            );
        }
    }

    /// One API server, replicas whose requests take their time, get lost, or whose answers do.
    struct Simulation {
        now: Instant,
        stored: Option<(String, u64)>,
        replicas: Vec<Replica>,
    }

    #[derive(Default)]
    struct Replica {
        seen: Option<Seen>,
        renewed: Option<Instant>,
    }

    impl Simulation {
        /// One replica looks (if its view is not `stale`) and does what it is told, with a request
        /// that arrives unless `lost` and is answered unless `unanswered`.
        fn step(&mut self, who: usize, stale: bool, lost: bool, unanswered: bool) {
            let (now, me) = (self.now, format!("r{who}"));
            if !stale {
                let seen = self.replicas[who].seen.clone();
                self.replicas[who].seen = self.stored.as_ref().map(|(holder, version)| {
                    Seen::new(&lease(holder, *version), seen.as_ref(), now)
                });
            }
            let replica = &mut self.replicas[who];
            match evaluate(replica.seen.as_ref(), replica.renewed, &me, now) {
                Step::Wait(_) => {}
                Step::Yield => replica.renewed = None,
                Step::Acquire | Step::Renew => {
                    let known = replica.seen.as_ref().map(|seen| seen.version.clone());
                    let current = self.stored.as_ref().map(|(_, version)| version.to_string());
                    if lost || known != current {
                        return;
                    }
                    let version = self.stored.as_ref().map_or(1, |(_, version)| version + 1);
                    self.stored = Some((me.clone(), version));
                    if !unanswered {
                        replica.seen = Some(Seen::new(&lease(&me, version), None, now));
                        replica.renewed = Some(now);
                    }
                }
            }
        }

        fn leaders(&self) -> usize {
            let leads = |it: &&Replica| {
                it.renewed
                    .is_some_and(|renewed| self.now.saturating_duration_since(renewed) < GIVE_UP)
            };
            self.replicas.iter().filter(leads).count()
        }
    }

    proptest! {
        /// Whatever gets lost or is late: never two, and who is left alone gets it in the end.
        #[test]
        fn there_are_never_two_leaders(
            steps in proptest::collection::vec(
                (0_usize..3, 0_u64..4000, any::<bool>(), proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)),
                1..200,
            )
        ) {
            let replicas = (0..3).map(|_| Replica::default()).collect();
            let mut all = Simulation { now: Instant::now(), stored: None, replicas };
            for (who, pause, stale, lost, unanswered) in steps {
                all.now += Duration::from_millis(pause);
                all.step(who, stale, lost, unanswered);
                prop_assert!(all.leaders() <= 1);
            }
            for _ in 0..40 {
                all.now += seconds(1);
                all.step(0, false, false, false);
            }
            prop_assert!(all.replicas[0].renewed.is_some());
        }
    }
}
