//! How much of a connection's output lies where it can no longer take turns with other streams: sealed, or with the
//! kernel and not sent.
//!
//! Too much, and a small message waits behind another stream's bulk; too little, and the path runs dry. How much is
//! right shows whenever the socket was full, took bytes again, and is full once more:
//!
//! * it took half as much again as it shall hold: it had run dry, or nearly, which speaks for more;
//! * otherwise, it had made us wait for long: it is a slow path, which speaks for less;
//! * it had made us wait for a moment only: a fast one, which speaks for more.
//!
//! A majority of three makes it twice as much, or half.
//!
//! At 100 Mb/s this comes to one record, from 1 Gb/s on to the most, where the socket is left alone: the clock is read
//! twice for each time that it was full, and nothing else is different.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::{
    output::SEALED,
    scratch::{RECORD, RECORDS},
};
use crate::socket::hold_unsent;

/// Waiting for longer than this is long. At least half of what the kernel holds leaves meanwhile; what is left of it, and
/// as much again, is what a small message waits behind.
const LONG: Duration = Duration::from_millis(2);
/// Waiting for less than this is a moment.
const SHORT: Duration = Duration::from_micros(250);
/// Majority that counts. Once is chance: whoever shares the processor with us makes us wait too.
const OFTEN: i8 = 3;
/// Of one record, in bytes.
const ONE: usize = SEALED / RECORDS;

/// What a path takes at once, and how that is going.
#[derive(Debug)]
pub(super) struct Pace {
    /// Records; 1, 2, 4 or 8.
    records: usize,
    /// The socket is full since then.
    full: Option<Instant>,
    /// For how long it was, before it took bytes again.
    waited: Option<Duration>,
    /// Bytes that it has taken since.
    taken: usize,
    /// For less (above zero) or for more.
    votes: i8,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            records: RECORDS,
            full: None,
            waited: None,
            taken: 0,
            votes: 0,
        }
    }
}

impl Pace {
    /// Records that may be made at once.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// Bytes that may lie sealed, and as many with the kernel.
    pub(super) fn bytes(&self) -> usize {
        self.records * ONE
    }

    /// Bytes for one write, when the kernel is not to put together what it gets.
    pub(super) fn piece(&self) -> Option<usize> {
        (self.records < RECORDS).then_some(self.records * RECORD)
    }

    /// The socket has taken `n` bytes.
    pub(super) fn took(&mut self, n: usize, now: impl FnOnce() -> Instant) {
        if let Some(full) = self.full.take() {
            self.waited = Some(now().saturating_duration_since(full));
            self.taken = 0;
        }
        self.taken += n;
    }

    /// The socket takes nothing. True when it shall hold another number of bytes from now on.
    pub(super) fn is_full(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.full.is_some() {
            return false; // as before
        }
        self.full = Some(now());
        let Some(waited) = self.waited.take() else {
            return false;
        };
        let before = self.records;
        let dry = self.taken * 2 >= self.bytes() * 3;
        let vote = match waited {
            _ if dry => -1,
            waited if waited < SHORT => -1,
            waited if waited > LONG => 1,
            _ => 0,
        };
        self.votes += vote;
        if self.votes >= OFTEN {
            self.votes = 0;
            self.records = (self.records / 2).max(1);
        } else if self.votes <= -OFTEN {
            self.votes = 0;
            self.records = (self.records * 2).min(RECORDS);
        }
        self.records != before
    }

    /// Tells the kernel how much it shall hold. A socket that refuses works without it.
    pub(super) fn tell(&self, tcp: &TcpStream) {
        hold_unsent(tcp, self.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of so many bytes a second, and a proxy that comes `late` when it is asked for more, which is when half of
    /// what the socket shall hold has left. How many records it came to, each time that the socket was full.
    fn run(rate: f64, late: Duration, times: usize) -> Vec<usize> {
        let (mut pace, mut now, mut held) = (Pace::default(), Instant::now(), 0.0);
        // What leaves at once when nothing is on its way.
        let flight = (rate * 0.002).max(32_768.0);
        let mut full = || {
            let mut free = if held == 0.0 { flight } else { 0.0 };
            while (held as usize) < pace.bytes() {
                let piece = pace.piece().unwrap_or(64 << 10);
                pace.took(piece, || now);
                let gone = free.min(piece as f64);
                free -= gone;
                held += piece as f64 - gone;
            }
            pace.is_full(|| now);
            let asked = Duration::from_secs_f64((held - pace.bytes() as f64 / 2.0).max(0.0) / rate);
            now += asked + late;
            held = (held - (asked + late).as_secs_f64() * rate).max(0.0);
            pace.records()
        };
        (0..times).map(|_| full()).collect()
    }

    /// Bytes a second.
    const fn megabits(n: u32) -> f64 {
        n as f64 * 125_000.0
    }

    #[test]
    fn a_slow_path_gets_little_at_once_and_a_fast_one_is_left_alone() {
        const PROMPT: Duration = Duration::from_micros(20);
        for (path, expected) in [
            (1, 1),
            (20, 1),
            (100, 1),
            (200, 2),
            (500, 4),
            (1_000, 8),
            (10_000, 8),
            (40_000, 8),
        ] {
            let records = run(megabits(path), PROMPT, 60).split_off(40);
            assert!(
                records.iter().all(|n| *n == expected),
                "{path} Mb/s: {records:?}"
            );
        }
    }

    #[test]
    fn who_comes_late_finds_more_waiting() {
        const LATE: Duration = Duration::from_millis(4);
        for path in [1_000, 10_000] {
            // It had run dry each time: it is no slow one.
            let records = run(megabits(path), LATE, 60);
            assert!(
                records.iter().all(|n| *n == RECORDS),
                "{path} Mb/s: {records:?}"
            );
        }
        // And on a slow one there is something left to send for as long.
        let records = run(megabits(100), LATE, 200).split_off(100);
        assert!(records.iter().any(|n| *n > 1), "{records:?}");
    }

    #[test]
    fn one_long_wait_changes_nothing() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms| move || start + Duration::from_millis(ms);
        let mut now = 0;
        for n in 0..20 {
            assert!(!pace.is_full(at(now)));
            assert!(!pace.is_full(at(now)), "it still is");
            now += if n == 7 { 5 } else { 1 };
            pace.took(64 << 10, at(now));
        }
        assert_eq!(pace.records(), RECORDS);
        assert_eq!(pace.piece(), None);
        assert_eq!(pace.bytes(), SEALED);
    }
}
