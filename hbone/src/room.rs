//! How much unread data a connection may hold, and all connections together.
//!
//! The engine gives connection credit and stream credit back together, when bytes are consumed. With
//! a fixed connection window of 16 MiB, four streams that nobody reads (4 MiB each) would freeze every
//! other stream of the connection. So the connection window is kept at least one stream window larger
//! than those of all open streams together ([`Room`]): what one stream leaves unread is bounded by its own
//! window, and takes nothing from the others. With `h2` each stream has the full window; with our own engine it
//! begins with a small one, and there must be room for all of them before one of them grows.
//!
//! All of that is our memory when apps do not read, so it is bounded twice: one connection grows by at
//! most [`CONNECTION_ROOM`], and what connections grow by comes out of one [`Reserve`]. When either is
//! used up the window stays as it is: memory is safe, and streams that nobody reads may again hold up
//! others of their own connection, never those of another.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

use crate::limits::{CONNECTION_ROOM, CONNECTION_WINDOW, RESERVE, STREAM_WINDOW};

/// Bytes by which receive windows may grow beyond the 16 MiB with which each connection begins. Clones
/// share. `Default` is the one of this process.
#[derive(Debug, Clone)]
pub struct Reserve(Arc<AtomicU64>);

impl Reserve {
    /// A reserve of its own.
    pub fn of(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// Bytes that nobody holds.
    pub fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes `wanted` bytes, or as many as are left.
    fn take(&self, wanted: u32) -> u32 {
        let mut taken = 0;
        let less = |left: u64| {
            taken = wanted.min(u32::try_from(left).unwrap_or(u32::MAX));
            (taken > 0).then(|| left - u64::from(taken))
        };
        // Relaxed: the count guards no other memory.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken
    }
}

impl Default for Reserve {
    fn default() -> Self {
        static SHARED: LazyLock<Reserve> = LazyLock::new(|| Reserve::of(RESERVE));
        SHARED.clone()
    }
}

/// The connection window that so many streams need, each with a full window of its own.
pub(crate) fn for_streams(count: usize) -> u64 {
    (count as u64 + 1).saturating_mul(STREAM_WINDOW.into())
}

/// What one connection has from the reserve. It never shrinks: what was announced to the peer cannot
/// be taken back. It goes back on drop, which must be after the last of the connection's tunnels: a
/// stream that has ended may still hold bytes that its app does not read.
#[derive(Debug)]
pub(crate) struct Room {
    held: AtomicU64,
    reserve: Reserve,
}

impl Room {
    pub(crate) fn new(reserve: Reserve) -> Self {
        Self {
            held: AtomicU64::new(0),
            reserve,
        }
    }

    /// Of a connection whose window has grown by `grown` bytes elsewhere. What the reserve does not have any
    /// more is held without it: it was announced to the peer, and cannot be taken back.
    pub(crate) fn thawed(reserve: Reserve, grown: u32) -> Self {
        let held = AtomicU64::new(reserve.take(grown).into());
        Self { held, reserve }
    }

    /// The new connection window when a larger one is `wanted` than was ever given, and there is enough for
    /// it. Called by the connection's driver alone.
    pub(crate) fn grow(&self, wanted: u64) -> Option<u32> {
        let wanted = u32::try_from(wanted)
            .unwrap_or(u32::MAX)
            .saturating_sub(CONNECTION_WINDOW)
            .min(CONNECTION_ROOM);
        let held = u32::try_from(self.held.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let more = match wanted.saturating_sub(held) {
            0 => 0,
            more => self.reserve.take(more),
        };
        self.held.fetch_add(more.into(), Ordering::Relaxed);
        (more > 0).then(|| CONNECTION_WINDOW + held + more)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.reserve
            .0
            .fetch_add(*self.held.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_exceeds_all_stream_windows_together_up_to_its_limit() {
        let room = Room::new(Reserve::of(1 << 30));
        assert_eq!(room.grow(for_streams(1)), None);
        assert_eq!(
            room.grow(for_streams(3)),
            None,
            "the window of the wire contract is enough for three"
        );
        assert_eq!(room.grow(for_streams(4)), Some(20 << 20));
        assert_eq!(room.grow(for_streams(2)), None, "it never shrinks");
        assert_eq!(
            room.grow(for_streams(200)),
            Some(CONNECTION_WINDOW + CONNECTION_ROOM)
        );
        assert_eq!(room.grow(u64::MAX), None, "and has a limit");
    }

    #[test]
    fn what_grew_elsewhere_is_taken_here_as_far_as_there_is_any() {
        let reserve = Reserve::of(10 << 20);
        let first = Room::thawed(reserve.clone(), 8 << 20);
        let second = Room::thawed(reserve.clone(), 8 << 20);
        assert_eq!(reserve.left(), 0);
        assert_eq!(first.grow(for_streams(4)), None, "it has as much");
        drop(first);
        assert_eq!(second.grow(for_streams(6)), Some((16 + 2 + 8) << 20));
        drop(second);
        assert_eq!(reserve.left(), 10 << 20);
    }

    #[test]
    fn connections_share_a_reserve_and_give_it_back() {
        let reserve = Reserve::of(10 << 20);
        let (first, second) = (Room::new(reserve.clone()), Room::new(reserve.clone()));
        assert_eq!(first.grow(for_streams(5)), Some(24 << 20));
        assert_eq!(
            second.grow(for_streams(5)),
            Some(18 << 20),
            "what is left is better than nothing"
        );
        assert_eq!(reserve.left(), 0);
        assert_eq!(second.grow(for_streams(5)), None);
        assert_eq!(second.grow(for_streams(6)), None);
        drop(first);
        assert_eq!(reserve.left(), 8 << 20);
        assert_eq!(second.grow(for_streams(6)), Some(26 << 20));
        assert_eq!(reserve.left(), 0);
        drop(second);
        assert_eq!(reserve.left(), 10 << 20);
    }
}
