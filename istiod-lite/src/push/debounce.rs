//! Pure: when to publish what changed.
//!
//! ```text
//!  quiet for a while ── change ─▶ now
//!  published lately  ── change ─▶ wait until nothing changed for `quiet`, at most `longest`
//! ```
//! A lone change is told at once; a storm (a rollout, a namespace deleted) is told in few rounds,
//! so that every proxy parses each resource once and not at each of its steps.

use std::time::{Duration, Instant};

/// When to publish.
#[derive(Debug, Clone)]
pub struct Debounce {
    quiet: Duration,
    longest: Duration,
    /// The first and the last change that were not published.
    waiting: Option<(Instant, Instant)>,
    published: Option<Instant>,
}

impl Debounce {
    /// `quiet`: pause that ends a storm (100 ms, `PILOT_DEBOUNCE_AFTER`); `longest`: what a change
    /// waits at most (300 ms, `PILOT_DEBOUNCE_MAX`).
    pub fn new(quiet: Duration, longest: Duration) -> Self {
        Self {
            quiet,
            longest,
            waiting: None,
            published: None,
        }
    }

    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        let first = self.waiting.map_or(now, |(first, _)| first);
        self.waiting = Some((first, now));
    }

    /// When to publish; `None` while there is nothing to.
    pub fn due(&self) -> Option<Instant> {
        let (first, last) = self.waiting?;
        let lately = self
            .published
            .is_some_and(|published| first < published + self.quiet);
        let stormy = lately || last > first;
        let settled = if stormy { last + self.quiet } else { first };
        Some(settled.min(first + self.longest))
    }

    /// Everything was published; returns how long the first change waited.
    pub fn published(&mut self, now: Instant) -> Duration {
        self.published = Some(now);
        let waited = self
            .waiting
            .take()
            .map(|(first, _)| now.saturating_duration_since(first));
        waited.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: u64 = 100;
    const LONGEST: u64 = 1000;

    /// Feeds changes (milliseconds); returns when each round was published.
    fn rounds(changes: &[u64]) -> Vec<u64> {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut debounce =
            Debounce::new(Duration::from_millis(QUIET), Duration::from_millis(LONGEST));
        let mut rounds = Vec::new();
        let mut publish = |debounce: &mut Debounce, before: Option<u64>| {
            while let Some(due) = debounce
                .due()
                .filter(|due| before.is_none_or(|ms| *due < at(ms)))
            {
                debounce.published(due);
                rounds.push(u64::try_from((due - start).as_millis()).unwrap());
            }
        };
        for change in changes {
            publish(&mut debounce, Some(*change));
            debounce.changed(at(*change));
        }
        publish(&mut debounce, None);
        rounds
    }

    #[test]
    fn a_lone_change_is_published_at_once() {
        assert_eq!(rounds(&[0]), [0]);
        assert_eq!(rounds(&[0, 500, 1000]), [0, 500, 1000]);
    }

    #[test]
    fn changes_in_quick_succession_are_published_together_when_they_pause() {
        assert_eq!(rounds(&[0, 10, 20, 30]), [0, 130]);
        assert_eq!(rounds(&[0, 10, 20, 300, 310]), [0, 120, 300, 410]);
    }

    #[test]
    fn a_storm_that_does_not_pause_is_published_at_the_longest_wait() {
        let storm: Vec<u64> = (0..=100).map(|n| n * 50).collect();
        let rounds = rounds(&storm);
        assert_eq!(rounds[0], 0);
        let longest = rounds.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(LONGEST + QUIET), "{rounds:?}");
        assert!(rounds.len() <= 8, "{rounds:?}");
    }
}
