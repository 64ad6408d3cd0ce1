//! How many of a service's requests may be retries (Gateway API, GEP-3388).
//!
//! Requests and retries are counted in windows that slide in tenths: ten counters each, of which one is begun anew
//! every tenth of the window. A counter and the tenth it belongs to are one atomic word, so nobody waits for anybody;
//! what two threads do in the same instant may let one retry too many pass.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::waypoint as wire;

/// The budget of one service, shared by all its requests.
#[derive(Debug)]
pub struct Budget {
    percent: u32,
    least: u32,
    requests: Window,
    retries: Window,
    recent: Window,
}

/// Where nothing is said.
const PERCENT: u32 = 20;
const INTERVAL: u64 = 10_000;
const LEAST_INTERVAL: u64 = 1_000;

impl Budget {
    /// Of a message. `percent` 0 allows no retries beyond the least.
    pub fn compile(wire: &wire::RetryBudget) -> Self {
        let or = |number, default| if number == 0 { default } else { number };
        let interval = or(wire.interval, INTERVAL);
        Self {
            percent: wire.percent.min(100),
            least: wire.least,
            requests: Window::of(interval),
            retries: Window::of(interval),
            recent: Window::of(or(wire.least_interval, LEAST_INTERVAL)),
        }
    }

    /// One that a user who names no figures has.
    pub fn usual() -> Self {
        Self::compile(&wire::RetryBudget {
            percent: PERCENT,
            interval: INTERVAL,
            least: 10,
            least_interval: LEAST_INTERVAL,
        })
    }

    /// A client's request, at its first try. `now`: since any fixed instant.
    pub fn request(&self, now: Duration) {
        self.requests.add(now);
    }

    /// Whether one more retry may be made; if so, it counts.
    pub fn retry(&self, now: Duration) -> bool {
        let retries = self.retries.sum(now);
        let all = retries + 1 + self.requests.sum(now);
        let share = (retries + 1) * 100 <= all * u64::from(self.percent);
        let may = share || self.recent.sum(now) < u64::from(self.least);
        if may {
            self.retries.add(now);
            self.recent.add(now);
        }
        may
    }
}

const SLOTS: u64 = 10;

/// How much happened within the last while.
#[derive(Debug)]
struct Window {
    /// Milliseconds of one slot.
    tenth: u64,
    /// Which tenth it is of (32 bits), and how many (32 bits).
    slots: [AtomicU64; SLOTS as usize],
}

impl Window {
    fn of(milliseconds: u64) -> Self {
        Self {
            tenth: (milliseconds / SLOTS).max(1),
            slots: Default::default(),
        }
    }

    /// From 1 on, so that a slot nobody used is none of them.
    fn now(&self, now: Duration) -> u64 {
        let passed = u64::try_from(now.as_millis()).unwrap_or(u64::MAX) / self.tenth;
        (passed + SLOTS) & u64::from(u32::MAX)
    }

    fn add(&self, now: Duration) {
        let tenth = self.now(now);
        let slot = &self.slots[(tenth % SLOTS) as usize];
        let one_more = |word: u64| match word >> 32 == tenth {
            true if word & 0xffff_ffff == 0xffff_ffff => None,
            true => Some(word + 1),
            false => Some((tenth << 32) | 1),
        };
        let _full = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
    }

    fn sum(&self, now: Duration) -> u64 {
        let tenth = self.now(now);
        let counts = self.slots.iter().map(|slot| {
            let word = slot.load(Ordering::Relaxed);
            let age = tenth.wrapping_sub(word >> 32);
            if age < SLOTS { word & 0xffff_ffff } else { 0 }
        });
        counts.sum()
    }
}
