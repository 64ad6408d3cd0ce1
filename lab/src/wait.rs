//! Waiting for something outside this process to become true.
//!
//! A probe is asked again and again until it answers, or until the time given is over; then
//! the error says what was waited for, how long, and what the last probe had to say.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two probes: short against anything a person notices, long against the cost of a probe.
const PAUSE: Duration = Duration::from_millis(5);

/// What a probe found.
pub enum Probe<T> {
    /// It is there.
    Ready(T),
    /// Not yet, and why.
    NotYet(String),
}

/// Asks `probe` until it is ready. An error of the probe ends the wait at once.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> Result<Probe<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe()? {
            Probe::Ready(found) => return Ok(found),
            Probe::NotYet(why) if started.elapsed() >= within => {
                bail!("waited {:.1} s for {what}: {why}", within.as_secs_f32())
            }
            Probe::NotYet(_) => pause(),
        }
    }
}

/// [`until`] for a plain condition.
pub fn until_true(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, within, || {
        Ok(if condition() {
            Probe::Ready(())
        } else {
            Probe::NotYet("still not so".into())
        })
    })
}

/// The lab has no runtime whose threads could starve, and the kernel offers no event for most of what is waited for here.
#[allow(clippy::disallowed_methods)]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_elapsed_wait_says_what_was_missing() {
        let error = until::<()>("the moon", Duration::from_millis(20), || {
            Ok(Probe::NotYet("clouds".into()))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "waited 0.0 s for the moon: clouds");
    }

    #[test]
    fn a_failing_probe_ends_the_wait() {
        let error = until::<()>("the moon", Duration::from_secs(60), || {
            bail!("it fell down")
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "it fell down");
    }

    #[test]
    fn a_probe_is_asked_until_it_is_ready() {
        let mut asked = 0;
        let found = until("three", Duration::from_secs(60), || {
            asked += 1;
            Ok(if asked == 3 {
                Probe::Ready(asked)
            } else {
                Probe::NotYet("count".into())
            })
        });
        assert_eq!(found.unwrap(), 3);
    }
}
