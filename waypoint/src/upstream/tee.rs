//! A body of which others get copies while it is read.
//!
//! Whoever reads it sets the pace. A copy may be behind by some megabytes, as long as all copies together are not behind by
//! too much: that is what a connection that is yet to be made takes, and an endpoint that is now and then the slower one.
//! Beyond that it is given up, and so is one whose body was not read to its end: its reader gets an error instead of an
//! end, so that nobody takes half a request for a whole one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::body::Cut;

/// The body itself. Mostly nobody gets a copy.
#[derive(Debug)]
pub struct Teed<B> {
    body: B,
    copies: Vec<Tap>,
}

/// A copy of it.
#[derive(Debug)]
pub struct Copied {
    pieces: mpsc::Receiver<Piece>,
    lag: Arc<Lag>,
    passed: CancellationToken,
    length: SizeHint,
    ended: bool,
}

#[derive(Debug)]
struct Tap {
    pieces: mpsc::Sender<Piece>,
    lag: Arc<Lag>,
    _passed: DropGuard,
}

#[derive(Debug, Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Piece {
    /// In bytes, with what it costs to keep it. What comes once weighs nothing: it must not be what is too much.
    fn weight(&self) -> usize {
        match self {
            Self::Data(data) => COST + data.len(),
            Self::Trailers(_) | Self::End => 0,
        }
    }
}

/// How far a copy is behind.
#[derive(Debug)]
struct Lag {
    /// Weight of what its reader has not read yet.
    waiting: AtomicUsize,
    /// It was too much.
    too_much: AtomicBool,
    room: &'static Room,
}

/// For what waits of all copies beyond what each has to itself.
#[derive(Debug)]
struct Room {
    most: isize,
    /// For a moment less than nothing, when it is given back before it was counted.
    taken: AtomicIsize,
}

impl Room {
    const fn of(most: isize) -> Self {
        Self {
            most,
            taken: AtomicIsize::new(0),
        }
    }
}

impl Lag {
    /// Whether so much more may wait. What is taken of the room is what each change of `waiting` makes of it, so that both
    /// ends may change it at a time.
    fn grow(&self, weight: usize) -> bool {
        let before = self.waiting.fetch_add(weight, Relaxed);
        let after = before + weight;
        let more = beyond(after) - beyond(before);
        let taken = match more {
            0 => 0,
            more => self.room.taken.fetch_add(more, Relaxed) + more,
        };
        // One piece always has room, however large it came.
        let alone = before == 0 || weight == 0;
        let fits = alone || after <= MOST && (more == 0 || taken <= self.room.most);
        if !fits {
            self.shrink(weight);
            self.too_much.store(true, Relaxed);
        }
        fits
    }

    fn shrink(&self, weight: usize) {
        let before = self.waiting.fetch_sub(weight, Relaxed);
        let less = beyond(before) - beyond(before - weight);
        if less > 0 {
            self.room.taken.fetch_sub(less, Relaxed);
        }
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        let left = *self.waiting.get_mut();
        self.shrink(left);
    }
}

/// Of what waits, what is not the copy's own.
fn beyond(waiting: usize) -> isize {
    waiting.saturating_sub(OWN) as isize
}

/// The body, and as many copies of it.
pub(super) fn tee<B: Body>(body: B, copies: usize) -> (Teed<B>, Vec<Copied>) {
    tee_within(&ROOM, body, copies)
}

fn tee_within<B: Body>(room: &'static Room, body: B, copies: usize) -> (Teed<B>, Vec<Copied>) {
    let length = body.size_hint();
    let pairs = (0..copies).map(|_| {
        let (sender, receiver) = mpsc::channel(PIECES);
        let lag = Arc::new(Lag {
            waiting: AtomicUsize::new(0),
            too_much: AtomicBool::new(false),
            room,
        });
        let passed = CancellationToken::new();
        let tap = Tap {
            pieces: sender,
            lag: lag.clone(),
            _passed: passed.clone().drop_guard(),
        };
        let copied = Copied {
            pieces: receiver,
            lag,
            passed,
            length,
            ended: false,
        };
        (tap, copied)
    });
    let (copies, copied) = pairs.unzip();
    (Teed { body, copies }, copied)
}

impl Tap {
    /// Whether the copy goes on.
    fn pass(&self, piece: Piece) -> bool {
        let weight = piece.weight();
        if !self.lag.grow(weight) {
            return false;
        }
        let sent = self.pieces.try_send(piece).is_ok();
        if !sent {
            self.lag.shrink(weight);
        }
        sent
    }
}

impl Copied {
    /// Tells whether it was given up because it was too far behind.
    pub(super) fn behind(&self) -> impl Fn() -> bool + Send + use<> {
        let lag = self.lag.clone();
        move || lag.too_much.load(Relaxed)
    }

    /// Ends when nothing more will come, but what waits.
    pub(super) fn passed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.passed.clone().cancelled_owned()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Teed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, copies } = self.get_mut();
        let polled = ready!(Pin::new(&mut *body).poll_frame(cx));
        if copies.is_empty() {
            return Poll::Ready(polled);
        }
        let piece = match &polled {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Some(Piece::Data(data.clone())),
                (None, Some(trailers)) => Some(Piece::Trailers(trailers.clone())),
                (None, None) => None,
            },
            Some(Err(_)) => {
                copies.clear();
                None
            }
            None => Some(Piece::End),
        };
        if let Some(piece) = piece {
            copies.retain(|tap| tap.pass(piece.clone()));
        }
        // Who knows that this was the last frame does not ask for another.
        let ended = match &polled {
            Some(Ok(_)) if body.is_end_stream() => {
                copies.retain(|tap| tap.pass(Piece::End));
                true
            }
            polled => polled.is_none(),
        };
        if ended {
            copies.clear();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(this.pieces.poll_recv(cx));
        if let Some(piece) = &piece {
            this.lag.shrink(piece.weight());
        }
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => {
                this.ended = true;
                None
            }
            None => {
                this.ended = true;
                Some(Err(Cut::Gone))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}

/// That a copy may be behind: a tenth of a second of a fast client.
const MOST: usize = 16 << 20;
/// Of that, what each has to itself, whatever others do.
const OWN: usize = 64 << 10;
/// What all copies of this process may be behind together, beside what each has to itself.
static ROOM: Room = Room::of(64 << 20);
/// To keep a piece, however small, beside its bytes.
const COST: usize = 256;
/// So many fit, their trailers, and the end.
const PIECES: usize = MOST / COST + 2;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    type Frames = Vec<Result<Frame<Bytes>, Infallible>>;

    fn data(length: usize) -> Result<Frame<Bytes>, Infallible> {
        Ok(Frame::data(Bytes::from(vec![7; length])))
    }

    fn body(frames: Frames) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(futures_util::stream::iter(frames))
    }

    /// Bytes of each frame that is there, and how it ends: None = it waits.
    fn read<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> (Vec<usize>, Option<bool>) {
        let mut lengths = Vec::new();
        loop {
            match body.frame().now_or_never() {
                None => return (lengths, None),
                Some(None) => return (lengths, Some(true)),
                Some(Some(Err(_))) => return (lengths, Some(false)),
                Some(Some(Ok(frame))) => lengths.push(frame.data_ref().map_or(0, Bytes::len)),
            }
        }
    }

    #[test]
    fn each_copy_is_the_whole_body_with_its_trailers() {
        let trailers = Ok(Frame::trailers(HeaderMap::new()));
        let (mut teed, copies) = tee(body(vec![data(3), data(5), trailers]), 2);
        assert_eq!(read(&mut teed), (vec![3, 5, 0], Some(true)));
        for mut copy in copies {
            assert_eq!(read(&mut copy), (vec![3, 5, 0], Some(true)));
        }
    }

    /// Of a test's own.
    fn room(most: isize) -> &'static Room {
        Box::leak(Box::new(Room::of(most)))
    }

    #[test]
    fn a_copy_that_nobody_reads_is_given_up_and_hinders_nobody() {
        let room = room(isize::MAX);
        let piece = 64 << 10;
        let frames = (0..400).map(|_| data(piece)).collect();
        let (mut teed, mut copies) = tee_within(room, body(frames), 1);
        let behind = copies[0].behind();
        assert_eq!(read(&mut teed).0.len(), 400);
        assert!(behind());
        let (read, end) = read(&mut copies[0]);
        assert_eq!(read.len(), MOST / (piece + COST));
        assert_eq!(end, Some(false));
        assert_eq!(room.taken.load(Relaxed), 0);
    }

    #[test]
    fn a_copy_whose_reader_keeps_up_is_whole_however_long_the_body() {
        let room = room(0);
        let frames = (0..2_000).map(|_| data(10_000)).collect();
        let (mut teed, mut copies) = tee_within(room, body(frames), 1);
        let (behind, mut length) = (copies[0].behind(), 0);
        let end = loop {
            for _ in 0..5 {
                let _passes = teed.frame().now_or_never();
            }
            let (pieces, end) = read(&mut copies[0]);
            length += pieces.into_iter().sum::<usize>();
            if end.is_some() {
                break end;
            }
        };
        assert_eq!((length, end, behind()), (20_000_000, Some(true), false));
        assert_eq!(room.taken.load(Relaxed), 0);
    }

    #[test]
    fn all_copies_share_what_they_may_be_behind_and_each_has_some_to_itself() {
        let room = room(1 << 20);
        let hog = || body((0..24).map(|_| data(40 << 10)).collect());
        let (mut first, hogging) = tee_within(room, hog(), 1);
        let (mut second, given_up) = tee_within(room, hog(), 1);
        let _all = (read(&mut first), read(&mut second));
        assert!(!hogging[0].behind()());
        assert!(given_up[0].behind()());
        let (mut small, mut copies) = tee_within(room, body(vec![data(30_000), data(30_000)]), 1);
        let _all = read(&mut small);
        assert_eq!(read(&mut copies[0]), (vec![30_000; 2], Some(true)));
        // What is not read is given back.
        drop((hogging, given_up));
        assert_eq!(room.taken.load(Relaxed), 0);
    }

    #[test]
    fn one_large_piece_has_room_and_very_many_small_ones_have_not() {
        let room = room(isize::MAX);
        let (mut teed, mut copies) = tee_within(room, body(vec![data(MOST * 2)]), 1);
        let _all = read(&mut teed);
        assert_eq!(read(&mut copies[0]), (vec![MOST * 2], Some(true)));
        let frames = (0..MOST / COST).map(|_| data(1)).collect();
        let (mut teed, mut copies) = tee_within(room, body(frames), 1);
        let _all = read(&mut teed);
        assert_eq!(read(&mut copies[0]).1, Some(false));
    }

    #[test]
    fn a_copy_knows_when_nothing_more_will_come() {
        for to_its_end in [true, false] {
            let (mut teed, copies) = tee(body(vec![data(1), data(1)]), 1);
            let mut passed = std::pin::pin!(copies[0].passed());
            let _first = teed.frame().now_or_never();
            assert_eq!(passed.as_mut().now_or_never(), None);
            if to_its_end {
                let _rest = read(&mut teed);
            } else {
                drop(teed);
            }
            assert_eq!(passed.now_or_never(), Some(()));
        }
    }

    #[test]
    fn what_is_not_read_to_its_end_has_no_end() {
        let (mut teed, mut copies) = tee(body(vec![data(1), data(1)]), 1);
        let _first = teed.frame().now_or_never();
        assert_eq!(read(&mut copies[0]), (vec![1], None));
        drop(teed);
        assert_eq!(read(&mut copies[0]), (vec![], Some(false)));
    }

    #[test]
    fn a_copy_that_is_dropped_hinders_nobody() {
        let (mut teed, copies) = tee(body(vec![data(1), data(1)]), 3);
        drop(copies);
        assert_eq!(read(&mut teed), (vec![1, 1], Some(true)));
    }
}
