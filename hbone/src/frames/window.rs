//! How much the peer may send on the whole connection.
//!
//! Credit goes back when bytes are received, not when somebody reads them: a stream that nobody reads is
//! held up by its own window alone, and takes nothing from its neighbours. What bounds our memory is a
//! second figure, `most_unread`: as soon as more lies unread, the connection window becomes smaller by
//! as much. It grows with the number of streams while there is memory for it (`room`).

use super::state::{Reader, StateError, ensure, put_u32};

/// Smaller pieces of credit are not worth a frame.
const PIECE: i64 = 16 << 10;

/// The receiving side of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// What the peer may send now.
    left: i64,
    /// What it shall be able to send.
    target: i64,
    /// Received, and not given back by a reader yet.
    unread: i64,
    most_unread: i64,
}

impl Window {
    /// A window of `target`, all of which has been announced.
    pub(super) fn new(target: u32) -> Self {
        Self {
            left: target.into(),
            target: target.into(),
            unread: 0,
            most_unread: target.into(),
        }
    }

    /// A DATA frame of `length`, of which `kept` will lie somewhere until they are read. False when the
    /// peer may not send as much.
    pub(super) fn received(&mut self, length: u32, kept: u32) -> bool {
        self.left -= i64::from(length);
        self.unread += i64::from(kept);
        self.left >= 0
    }

    /// Bytes that nobody holds any more.
    pub(super) fn read(&mut self, n: usize) {
        self.unread = (self.unread - n as i64).max(0); // a count of bytes in memory fits
    }

    /// More may lie unread. Never less.
    pub(super) fn grow(&mut self, most_unread: u32) {
        self.most_unread = self.most_unread.max(most_unread.into());
    }

    /// Credit that is due to the peer, if it is worth a frame; counted as given.
    pub(super) fn credit(&mut self) -> Option<u32> {
        let shall = self.target.min(self.most_unread - self.unread);
        let due = shall - self.left;
        if due < PIECE.max(shall / 2) {
            return None;
        }
        self.left += due;
        u32::try_from(due).ok()
    }

    /// Bytes received and not given back.
    pub(super) fn unread(&self) -> i64 {
        self.unread
    }

    /// As much may lie unread.
    pub(super) fn most_unread(&self) -> u32 {
        u32::try_from(self.most_unread).unwrap_or(u32::MAX)
    }

    /// None when there is nothing to go on with: the peer has sent more than it may.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        for n in [self.left, self.unread, self.most_unread] {
            put_u32(out, u32::try_from(n).ok()?);
        }
        Some(())
    }

    /// A window whose target is known.
    pub(super) fn restore(target: u32, from: &mut Reader<'_>) -> Result<Self, StateError> {
        let [left, unread, most_unread] = [from.u32()?, from.u32()?, from.u32()?].map(i64::from);
        let target = i64::from(target);
        // All credit was given while as much could still come to lie unread.
        let sound = left <= target && target <= most_unread && left + unread <= most_unread;
        ensure(sound, "a connection window beyond what may lie unread")?;
        Ok(Self {
            left,
            target,
            unread,
            most_unread,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_comes_back_on_receipt_in_halves_of_the_window() {
        let mut window = Window::new(1 << 20);
        assert!(window.received((1 << 19) - 1, 0));
        assert_eq!(window.credit(), None);
        assert!(window.received(1, 0));
        assert_eq!(window.credit(), Some(1 << 19));
        assert_eq!(window.credit(), None);
        assert!(window.received(1 << 20, 0), "all of it");
        assert!(!window.received(1, 0), "and no more");
    }

    #[test]
    fn unread_bytes_beyond_the_allowance_narrow_the_window_until_they_are_read() {
        let mut window = Window::new(1 << 20);
        assert!(window.received(1 << 20, 1 << 20));
        assert_eq!(window.credit(), None, "as much lies unread as may");
        window.read(PIECE as usize - 1);
        assert_eq!(window.credit(), None);
        window.read(1);
        assert_eq!(window.credit(), Some(PIECE as u32));
        window.grow(3 << 20);
        assert_eq!(window.credit(), Some((1 << 20) - PIECE as u32));
        window.grow(1);
        assert!(window.received(1 << 20, 1 << 20));
        assert_eq!(
            window.credit(),
            Some(1 << 20),
            "two windows unread, and one to come"
        );
    }
}
