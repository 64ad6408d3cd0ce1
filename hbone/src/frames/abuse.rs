//! How much of what costs work and carries nothing one peer may send.
//!
//! The budgets are those of `limits`; each use of one says what it is spent on. What is not spent from
//! a budget is bounded otherwise: DATA by windows, header blocks by their size, SETTINGS by theirs.

use std::time::Instant;

use super::{
    Violation,
    state::{Reader, StateError, ensure},
};
use crate::limits::{Budget, Refusal};

/// Credits in hand at most, see [`Abuse::earn`].
const MOST_EARNED: u32 = 1 << 20;

/// What is left of each budget.
#[derive(Debug)]
pub(super) struct Abuse {
    pings: Budget,
    settings: Budget,
    empty: Budget,
    resets: Budget,
    early: Budget,
    idle: Budget,
    updates: Budget,
    /// WINDOW_UPDATEs that the peer has good reason to send.
    earned: u32,
}

impl Abuse {
    pub(super) const fn new() -> Self {
        Self {
            pings: Budget::pings(),
            settings: Budget::settings(),
            empty: Budget::empty(),
            resets: Budget::resets(),
            early: Budget::early_resets(),
            idle: Budget::idle(),
            updates: Budget::idle(),
            earned: 0,
        }
    }

    pub(super) fn ping(&mut self, now: Instant) -> Result<(), Violation> {
        spend(&mut self.pings, now, Refusal::PingFlood, "too many PING")
    }

    pub(super) fn settings(&mut self, now: Instant) -> Result<(), Violation> {
        let what = "too many SETTINGS";
        spend(&mut self.settings, now, Refusal::SettingsFlood, what)
    }

    /// DATA without data.
    pub(super) fn empty(&mut self, now: Instant) -> Result<(), Violation> {
        let what = "too many empty DATA";
        spend(&mut self.empty, now, Refusal::EmptyDataFlood, what)
    }

    /// RST_STREAM, of whatever stream.
    pub(super) fn reset(&mut self, now: Instant) -> Result<(), Violation> {
        let what = "too many RST_STREAM";
        spend(&mut self.resets, now, Refusal::ResetFlood, what)
    }

    /// A stream that came to nothing: the peer reset it before it was answered (rapid reset), or made us
    /// reset it ("made you reset"), which saves us as little of the work.
    pub(super) fn in_vain(&mut self, now: Instant) -> Result<(), Violation> {
        let what = "too many streams that came to nothing";
        spend(&mut self.early, now, Refusal::ResetFlood, what)
    }

    /// A frame that we have no use for.
    pub(super) fn idle(&mut self, now: Instant) -> Result<(), Violation> {
        let what = "too many frames without use";
        spend(&mut self.idle, now, Refusal::IdleFrameFlood, what)
    }

    /// WINDOW_UPDATE. Those that what we sent gives reason for are free.
    pub(super) fn update(&mut self, now: Instant) -> Result<(), Violation> {
        if let Some(left) = self.earned.checked_sub(1) {
            self.earned = left;
            return Ok(());
        }
        let what = "too many WINDOW_UPDATE";
        spend(&mut self.updates, now, Refusal::IdleFrameFlood, what)
    }

    /// Credits in hand. Unlike the budgets they have no clock: what we sent is still on its way.
    pub(super) fn earned(&self) -> u32 {
        self.earned
    }

    /// Full budgets, and credits in hand.
    pub(super) fn restore(from: &mut Reader<'_>) -> Result<Self, StateError> {
        let earned = from.u32()?;
        ensure(earned <= MOST_EARNED, "more credits than can be in hand")?;
        Ok(Self {
            earned,
            ..Self::new()
        })
    }

    /// We have sent `n` bytes of DATA. A simple peer gives credit back for each piece that it reads,
    /// to stream and connection, and may read in pieces of 1 KiB.
    pub(super) fn earn(&mut self, n: usize) {
        let reasons = 4 + (n >> 9) as u32; // n is at most a frame, 2^24
        self.earned = (self.earned + reasons).min(MOST_EARNED);
    }
}

fn spend(
    budget: &mut Budget,
    now: Instant,
    kind: Refusal,
    what: &'static str,
) -> Result<(), Violation> {
    if budget.take(|| now) {
        Ok(())
    } else {
        Err(Violation::flood(kind, what))
    }
}
