//! Pure: a few answers, remembered for a short while.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// At most `most` values, each for `life`; when there are too many the oldest goes.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    life: Duration,
    most: usize,
    values: HashMap<K, (Instant, V)>,
    /// Oldest first; also some that were replaced since.
    order: VecDeque<(Instant, K)>,
}

impl<K: Clone + Eq + Hash, V: Clone> Recent<K, V> {
    pub(super) fn new(life: Duration, most: usize) -> Self {
        Self {
            life,
            most,
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The value, if it is young enough.
    pub(super) fn get(&mut self, key: &K, now: Instant) -> Option<V> {
        self.tidy(now);
        self.values.get(key).map(|(_, value)| value.clone())
    }

    /// Remembers a value from `now` on.
    pub(super) fn put(&mut self, key: K, value: V, now: Instant) {
        self.values.insert(key.clone(), (now, value));
        self.order.push_back((now, key));
        self.tidy(now);
    }

    /// Forgets the old, and of the young as many as are too many.
    fn tidy(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front() {
            let expired = now.saturating_duration_since(*at) >= self.life;
            if !expired && self.order.len() <= self.most {
                return;
            }
            // One that was replaced since has a younger entry further back.
            if self.values.get(key).is_some_and(|(latest, _)| latest == at) {
                self.values.remove(key);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(5);

    #[test]
    fn a_value_is_there_for_its_life_and_not_longer() {
        let (mut recent, start) = (Recent::new(LIFE, 10), Instant::now());
        recent.put("a", 1, start);
        assert_eq!(
            recent.get(&"a", start + LIFE - Duration::from_millis(1)),
            Some(1)
        );
        assert_eq!(recent.get(&"a", start + LIFE), None);
        assert!(recent.values.is_empty() && recent.order.is_empty());
    }

    #[test]
    fn a_value_put_again_lives_from_then_on() {
        let (mut recent, start) = (Recent::new(LIFE, 10), Instant::now());
        recent.put("a", 1, start);
        recent.put("a", 2, start + LIFE / 2);
        assert_eq!(recent.get(&"a", start + LIFE), Some(2));
        assert_eq!(recent.get(&"a", start + LIFE / 2 + LIFE), None);
    }

    #[test]
    fn however_many_come_only_the_last_are_kept() {
        let (mut recent, start) = (Recent::new(LIFE, 3), Instant::now());
        let mut now = start;
        for number in 0..1000 {
            now += Duration::from_nanos(1);
            recent.put(number % 7, number, now);
            assert!(recent.values.len() <= 3 && recent.order.len() <= 3);
        }
        assert_eq!(recent.get(&(999 % 7), now), Some(999));
        assert_eq!(recent.get(&(996 % 7), now), None);
    }
}
