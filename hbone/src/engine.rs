//! What both sides of an HTTP/2 connection need beside the engine itself: keepalive, room for unread
//! data, and the count of streams.
//!
//! **Room.** The engine gives connection credit and stream credit back together, when bytes are
//! consumed. With a fixed connection window of 16 MiB, four streams that nobody reads (4 MiB each)
//! would freeze every other stream of the connection. So the connection window is kept at least one
//! stream window larger than all open streams together: what one stream leaves unread is bounded by
//! its own window, and takes nothing from the others.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{
    identity::Identity,
    limits::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// What an error of the engine means to whoever reads the log.
pub(crate) fn words(error: &h2::Error) -> String {
    match error.get_io().map(io::Error::kind) {
        // The TLS library's own text here is a link to its manual.
        Some(io::ErrorKind::UnexpectedEof) => "the peer hung up without saying so".to_owned(),
        _ => error.to_string(),
    }
}

/// Sends a PING when its time has come and notices when no answer comes.
pub(crate) struct Pinger {
    ping: Option<h2::PingPong>,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    every: Duration,
    answer: Duration,
}

impl Pinger {
    pub(crate) fn new(ping: Option<h2::PingPong>, every: Duration, answer: Duration) -> Self {
        Self {
            ping,
            timer: Box::pin(tokio::time::sleep(every)),
            waiting: false,
            every,
            answer,
        }
    }

    /// Ready when the peer is taken for dead.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ping) = &mut self.ping else {
            return Poll::Pending;
        };
        loop {
            if self.waiting {
                match ping.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.every);
                    }
                    // The connection is ending; whoever polls it will see.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            } else {
                std::task::ready!(self.timer.as_mut().poll(cx));
                if ping.send_ping(h2::Ping::opaque()).is_err() {
                    return Poll::Pending;
                }
                self.waiting = true;
                self.timer.as_mut().reset(Instant::now() + self.answer);
            }
        }
    }
}

/// How large the connection window must be.
#[derive(Debug)]
pub(crate) struct Room(u32);

impl Room {
    pub(crate) fn new() -> Self {
        Self(CONNECTION_WINDOW)
    }

    /// The new target when `streams` need more room than was ever given. It never shrinks: what was
    /// announced cannot be taken back.
    pub(crate) fn grow(&mut self, streams: usize) -> Option<u32> {
        let streams = u32::try_from(streams).unwrap_or(u32::MAX);
        let wanted = streams
            .saturating_add(1)
            .saturating_mul(STREAM_WINDOW)
            .min(i32::MAX as u32);
        (wanted > self.0).then(|| {
            self.0 = wanted;
            wanted
        })
    }
}

/// Streams open on a connection, whether it takes more, and when the last one ended.
#[derive(Debug)]
pub(crate) struct Occupancy {
    /// Who is at the other end; here because every tunnel of the connection points here anyway.
    peer: Identity,
    /// The count; [`CLOSED`] is set when no more streams may be opened.
    streams: AtomicUsize,
    /// Milliseconds from `born` to the last end of a stream.
    last_used: AtomicU64,
    born: Instant,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

impl Occupancy {
    pub(crate) fn new(peer: Identity) -> Arc<Self> {
        Arc::new(Self {
            peer,
            streams: AtomicUsize::new(0),
            last_used: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    /// Takes one stream's place if fewer than `most` are taken and the connection is open.
    pub(crate) fn lease(self: &Arc<Self>, most: usize) -> Option<Lease> {
        let more = |now: usize| (now & CLOSED == 0 && now < most).then_some(now + 1);
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()
            .map(|_| Lease(self.clone()))
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire) & !CLOSED
    }

    pub(crate) fn closed(&self) -> bool {
        self.streams.load(Ordering::Acquire) & CLOSED != 0
    }

    /// No more streams; those that are open go on.
    pub(crate) fn close(&self) {
        self.streams.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Closes if no stream is open, in one step with [`Occupancy::lease`].
    pub(crate) fn close_if_unused(&self) -> bool {
        self.streams
            .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// When the last stream ended (or the connection began).
    pub(crate) fn last_used(&self) -> Instant {
        self.born + Duration::from_millis(self.last_used.load(Ordering::Relaxed))
    }
}

/// One stream's place on a connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Occupancy>);

impl Lease {
    pub(crate) fn peer(&self) -> &Identity {
        &self.0.peer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_used.store(now, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_exceeds_all_stream_windows_together() {
        let mut room = Room::new();
        assert_eq!(room.grow(1), None);
        assert_eq!(
            room.grow(3),
            None,
            "the window of the wire contract is enough for three"
        );
        assert_eq!(room.grow(4), Some(20 << 20));
        assert_eq!(room.grow(2), None, "it never shrinks");
        assert_eq!(room.grow(200), Some(201 * STREAM_WINDOW));
        assert_eq!(room.grow(usize::MAX), Some(i32::MAX as u32));
    }

    #[test]
    fn a_closed_connection_gives_no_place_and_a_used_one_does_not_close() {
        let occupancy = Occupancy::new(Identity::new("td", "ns", "sa").unwrap());
        let lease = occupancy.lease(1).unwrap();
        assert!(occupancy.lease(1).is_none());
        assert!(!occupancy.close_if_unused());
        drop(lease);
        assert!(occupancy.close_if_unused());
        assert!(occupancy.lease(1).is_none());
        assert_eq!(occupancy.streams(), 0);
    }
}
