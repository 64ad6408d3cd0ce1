//! The end of a certificate, by both clocks of the machine.

use std::time::SystemTime;

use tokio::time::Instant;

/// It is over as soon as either clock says so: setting the wall clock back gives nobody more time, and neither does a
/// machine that slept, during which the steady one stood still.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    wall: SystemTime,
    steady: Instant,
}

impl End {
    /// A time of the wall clock, as it is expected now.
    pub(crate) fn at(wall: SystemTime) -> Self {
        let left = wall.duration_since(SystemTime::now());
        let steady = Instant::now() + left.unwrap_or_default();
        Self { wall, steady }
    }

    pub(crate) fn is_over(self) -> bool {
        self.steady <= Instant::now() || self.wall <= SystemTime::now()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn either_clock_is_enough() {
        let hour = Duration::from_secs(3600);
        let end = End::at(SystemTime::now() + hour);
        assert!(!end.is_over());
        // By the steady clock, which the test moves.
        tokio::time::sleep(hour + Duration::from_secs(1)).await;
        assert!(end.is_over());
        // By the wall clock alone.
        let slept = End {
            wall: SystemTime::now() - Duration::from_secs(1),
            steady: Instant::now() + hour,
        };
        assert!(slept.is_over());
    }
}
