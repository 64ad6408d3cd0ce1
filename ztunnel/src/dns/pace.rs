//! How fast one pod's questions may make the control plane be asked: names are easily thought up.

use std::time::Duration;

use tokio::time::Instant;

/// What was asked for within the second that runs.
#[derive(Debug)]
pub(super) struct Pace {
    begun: Instant,
    asked: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            asked: 0,
        }
    }

    /// Whether so many names more may be asked for.
    pub(super) fn allows(&mut self, count: usize, now: Instant) -> bool {
        if now.duration_since(self.begun) >= SECOND {
            *self = Self::new(now);
        }
        let asked = self.asked + count;
        if asked > MOST {
            return false;
        }
        self.asked = asked;
        true
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Some fifty names that nobody has asked for yet, each in a few spellings. A pod that starts asks for fewer.
const MOST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_asks_without_end_asks_for_so_many_names_a_second() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let allowed = |pace: &mut Pace, at| (0..1000).filter(|_| pace.allows(4, at)).count();
        assert_eq!(allowed(&mut pace, begun), MOST / 4);
        assert_eq!(allowed(&mut pace, begun + SECOND / 2), 0);
        assert_eq!(allowed(&mut pace, begun + SECOND), MOST / 4);
        assert!(!pace.allows(1, begun + SECOND) && pace.allows(MOST, begun + SECOND * 2));
    }
}
