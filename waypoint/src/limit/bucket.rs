//! One bucket: so many in a time, evenly (a rate) or at will (a quota).

use std::time::Duration;

/// How many may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measure {
    /// In each window.
    pub(super) requests: u64,
    pub(super) window: Duration,
    /// At once.
    pub(super) burst: u64,
    /// A fixed budget a window, not a rate.
    pub(super) quota: bool,
}

/// What is remembered of one kind of request. All zero: nothing has passed yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Rate: when it will be full again, in nanoseconds of the table's clock. Quota: number of the window.
    at: u64,
    /// Quota: how many have passed in that window.
    used: u64,
}

/// Whether one more may pass, and what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) passes: bool,
    /// How many may pass now, after this one.
    pub(super) left: u64,
    /// When there will be as many as there can be; if it did not pass: when one may.
    pub(super) after: Duration,
}

impl Measure {
    /// Between two requests at an even pace.
    fn pace(&self) -> u64 {
        (nanos(self.window) / self.requests.max(1)).max(1)
    }

    /// One more, at `now` nanoseconds.
    pub(super) fn take(&self, bucket: &mut Bucket, now: u64) -> Answer {
        if self.quota {
            return self.take_of_quota(bucket, now);
        }
        // The generic cell rate algorithm: a token bucket that remembers one number, when it will be full again.
        let (pace, full) = (self.pace(), bucket.at.max(now));
        let depth = pace.saturating_mul(self.burst);
        let next = full.saturating_add(pace);
        if self.requests == 0 || next - now > depth {
            return Answer {
                passes: false,
                left: 0,
                after: Duration::from_nanos((next - now).saturating_sub(depth)),
            };
        }
        bucket.at = next;
        Answer {
            passes: true,
            left: (depth - (next - now)) / pace,
            after: Duration::from_nanos(next - now),
        }
    }

    fn take_of_quota(&self, bucket: &mut Bucket, now: u64) -> Answer {
        let window = nanos(self.window).max(1);
        let number = now / window;
        if bucket.at != number {
            *bucket = Bucket {
                at: number,
                used: 0,
            };
        }
        let passes = bucket.used < self.requests;
        bucket.used += u64::from(passes);
        Answer {
            passes,
            left: self.requests - bucket.used.min(self.requests),
            after: Duration::from_nanos(window - now % window),
        }
    }

    /// It did not happen after all.
    pub(super) fn give_back(&self, bucket: &mut Bucket) {
        if self.quota {
            bucket.used = bucket.used.saturating_sub(1);
        } else {
            bucket.at = bucket.at.saturating_sub(self.pace());
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
