//! Pure: what follows the end of a worker.
//!
//! | it ended | then |
//! |---|---|
//! | after it was asked to, or with status 0 | the keeper ends as it did |
//! | with another status, and nothing is held yet | the same: a setting is wrong, and its last words say which |
//! | otherwise | the next one is started, at once the first time, then after longer and longer pauses |
//! | [`MOST`] times in a row within [`STEADY`] | the keeper gives up, ends as it did, and kubelet counts a crash |

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Status(i32),
    Signal(Signal),
}

/// What is known when a worker has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Death {
    pub(super) end: End,
    pub(super) lived: Duration,
    /// A signal to stop was passed on to it.
    pub(super) asked: bool,
    /// It has left listeners behind.
    pub(super) held: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another worker, after a pause.
    Start(Duration),
    /// The keeper's own end, with this status.
    Exit(i32),
}

/// How many workers have died young, one after the other.
#[derive(Debug, Default)]
pub(super) struct Patience {
    deaths: u32,
}

impl Patience {
    pub(super) fn after(&mut self, death: Death) -> Next {
        let Death {
            end,
            lived,
            asked,
            held,
        } = death;
        let misstart = matches!(end, End::Status(_)) && !held;
        if asked || end == End::Status(0) || misstart {
            return Next::Exit(end.status());
        }
        if lived >= STEADY {
            self.deaths = 0;
        }
        self.deaths += 1;
        match self.deaths {
            1 => Next::Start(Duration::ZERO),
            2..MOST => Next::Start(FIRST_PAUSE * (1 << (self.deaths - 2))),
            _ => Next::Exit(end.status()),
        }
    }
}

impl End {
    /// As shells and container runtimes put it in one number.
    pub(super) fn status(self) -> i32 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => 128 + signal as i32,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Signal(signal) => f.write_str(signal.as_str()),
        }
    }
}

/// Who lived as long has died of something that comes seldom.
const STEADY: Duration = Duration::from_secs(60);
/// With the pauses between them (6.3 s together), long enough for what passes, short enough that kubelet hears of what
/// does not while somebody still looks.
const MOST: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const YOUNG: Duration = Duration::from_millis(700);

    fn killed(lived: Duration) -> Death {
        Death {
            end: End::Signal(Signal::SIGKILL),
            lived,
            asked: false,
            held: true,
        }
    }

    #[test]
    fn the_keeper_ends_as_its_worker_when_the_worker_was_right_to_end() {
        let accident = killed(YOUNG);
        for (death, status) in [
            (
                Death {
                    end: End::Status(0),
                    ..accident
                },
                0,
            ),
            (
                Death {
                    end: End::Status(0),
                    held: false,
                    ..accident
                },
                0,
            ),
            (
                Death {
                    end: End::Status(1),
                    asked: true,
                    ..accident
                },
                1,
            ),
            (
                Death {
                    asked: true,
                    ..accident
                },
                137,
            ),
            (
                Death {
                    end: End::Signal(Signal::SIGTERM),
                    asked: true,
                    held: false,
                    ..accident
                },
                143,
            ),
            // A setting that nobody understands: said once, not eight times.
            (
                Death {
                    end: End::Status(2),
                    held: false,
                    ..accident
                },
                2,
            ),
        ] {
            assert_eq!(
                Patience::default().after(death),
                Next::Exit(status),
                "{death:?}"
            );
        }
    }

    #[test]
    fn an_accident_is_followed_by_the_next_worker_at_once() {
        let accident = killed(YOUNG);
        for death in [
            accident,
            Death {
                held: false,
                ..accident
            },
            Death {
                end: End::Status(101),
                ..accident
            },
        ] {
            let next = Patience::default().after(death);
            assert_eq!(next, Next::Start(Duration::ZERO), "{death:?}");
        }
    }

    #[test]
    fn who_keeps_dying_waits_longer_and_is_given_up() {
        let mut patience = Patience::default();
        let mut next = || patience.after(killed(YOUNG));
        let pauses = [0, 100, 200, 400, 800, 1600, 3200].map(Duration::from_millis);
        assert_eq!([(); 7].map(|()| next()), pauses.map(Next::Start));
        assert_eq!(next(), Next::Exit(137));
    }

    #[test]
    fn a_long_life_makes_good_for_the_deaths_before() {
        let mut patience = Patience::default();
        for _ in 0..20 {
            patience.after(killed(YOUNG));
            patience.after(killed(YOUNG));
            assert_eq!(patience.after(killed(STEADY)), Next::Start(Duration::ZERO));
            assert_ne!(patience.after(killed(YOUNG)), Next::Start(Duration::ZERO));
        }
    }
}
