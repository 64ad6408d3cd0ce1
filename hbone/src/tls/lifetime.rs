//! How long what a handshake has proven may be built upon, and by which clocks.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

/// Between a handshake that showed certificates and the last one that goes without, however many came
/// between. Pools close a connection that nobody used for five minutes, so a pair of pods that talk now
/// and then show certificates once an hour instead of at each talk.
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);

/// A point in time by two clocks: setting one of them back gives nobody more time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Seconds since 1970.
    pub(super) wall: u64,
    /// Milliseconds since this process looked first.
    steady: u64,
}

impl Moment {
    /// None when there is no time to be had.
    pub(super) fn now(clock: &dyn TimeProvider) -> Option<Self> {
        static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
        Some(Self {
            wall: clock.current_time()?.as_secs(),
            steady: u64::try_from(FIRST.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Time since `earlier` by whichever clock says more. None when either ran backwards.
    pub(super) fn since(self, earlier: Self) -> Option<Duration> {
        let wall = Duration::from_secs(self.wall.checked_sub(earlier.wall)?);
        let steady = Duration::from_millis(self.steady.checked_sub(earlier.steady)?);
        Some(wall.max(steady))
    }

    /// What is left of [`LIFETIME`] for what was proven at `proven`; None when nothing is.
    pub(super) fn left(self, proven: Self) -> Option<Duration> {
        let left = LIFETIME.checked_sub(self.since(proven)?)?;
        (!left.is_zero()).then_some(left)
    }

    /// The same point for rustls.
    pub(super) fn unix(self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.wall))
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.wall.to_be_bytes());
        bytes[8..].copy_from_slice(&self.steady.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [wall, steady] = [0, 8].map(|at| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        });
        Self { wall, steady }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn at(wall: u64, steady: u64) -> Moment {
        Moment { wall, steady }
    }

    #[test]
    fn the_clock_that_says_more_counts_and_one_that_ran_backwards_is_not_believed() {
        let proven = at(1000, 500_000);
        for (now, left) in [
            (at(1000, 500_000), Some(HOUR)),
            (at(1600, 500_000), Some(HOUR - 600)),
            (at(1000, 1_100_000), Some(HOUR - 600)),
            (at(1600, 4_099_000), Some(1)),
            (at(1600, 4_100_000), None),
            (at(1000 + HOUR, 500_000), None),
            (at(u64::MAX, 500_000), None),
            (at(999, 500_000), None),
            (at(1000, 499_999), None),
        ] {
            assert_eq!(now.left(proven), left.map(Duration::from_secs), "{now:?}");
        }
    }

    #[test]
    fn a_moment_is_written_down_and_read_again() {
        let moment = at(0x0102_0304_0506_0708, 9);
        assert_eq!(Moment::from_bytes(moment.to_bytes()), moment);
    }
}
