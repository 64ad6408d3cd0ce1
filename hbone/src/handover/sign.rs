//! How far a freeze has come, for those who must stop: one byte that they look at without a lock.

use std::sync::atomic::{AtomicU8, Ordering};

/// `Here ⇄ Stopping → Away → Here` or `Given`, which is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Everything goes on.
    Here,
    /// Whoever copies says what it holds, and waits.
    Stopping,
    /// Written down and put away: nothing may be touched.
    Away,
    /// Somebody else goes on with it.
    Given,
}

/// Where it stands. Set under the lock of whatever is frozen.
#[derive(Debug, Default)]
pub(crate) struct Sign(AtomicU8);

impl Sign {
    pub(crate) fn now(&self) -> Standing {
        match self.0.load(Ordering::Acquire) {
            0 => Standing::Here,
            1 => Standing::Stopping,
            2 => Standing::Away,
            _ => Standing::Given,
        }
    }

    pub(crate) fn set(&self, standing: Standing) {
        self.0.store(standing as u8, Ordering::Release);
    }
}
