//! A body of which others get copies while it is read.
//!
//! Whoever reads it sets the pace. A copy whose reader falls behind is given up, and so is one whose body was not read
//! to its end: its reader gets an error instead of an end, so that nobody takes half a request for a whole one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

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
    waiting: Arc<AtomicUsize>,
    length: SizeHint,
    ended: bool,
}

#[derive(Debug)]
struct Tap {
    pieces: mpsc::Sender<Piece>,
    /// Bytes that were not read yet.
    waiting: Arc<AtomicUsize>,
}

#[derive(Debug, Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// The body, and as many copies of it.
pub(super) fn tee<B: Body>(body: B, copies: usize) -> (Teed<B>, Vec<Copied>) {
    let length = body.size_hint();
    let pairs = (0..copies).map(|_| {
        let (sender, receiver) = mpsc::channel(PIECES);
        let waiting = Arc::new(AtomicUsize::new(0));
        let tap = Tap {
            pieces: sender,
            waiting: waiting.clone(),
        };
        let copied = Copied {
            pieces: receiver,
            waiting,
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
        if let Piece::Data(data) = &piece {
            let before = self.waiting.fetch_add(data.len(), Relaxed);
            // One piece always has room, however large it came.
            if before > 0 && before + data.len() > MOST {
                return false;
            }
        }
        self.pieces.try_send(piece).is_ok()
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
        if matches!(polled, Some(Ok(_))) && body.is_end_stream() {
            copies.retain(|tap| tap.pass(Piece::End));
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
        Poll::Ready(match ready!(this.pieces.poll_recv(cx)) {
            Some(Piece::Data(data)) => {
                this.waiting.fetch_sub(data.len(), Relaxed);
                Some(Ok(Frame::data(data)))
            }
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

/// Bytes and pieces that wait for the reader of one copy.
const MOST: usize = 64 << 10;
const PIECES: usize = 64;

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

    #[test]
    fn a_copy_that_nobody_reads_is_given_up_and_hinders_nobody() {
        let (mut teed, mut copies) = tee(body((0..100).map(|_| data(1000)).collect()), 1);
        assert_eq!(read(&mut teed).0.len(), 100);
        let (read, end) = read(&mut copies[0]);
        assert!(read.len() <= MOST / 1000, "{}", read.len());
        assert_eq!(end, Some(false));
    }

    #[test]
    fn one_large_piece_has_room_and_many_small_ones_have_not() {
        let (mut teed, mut copies) = tee(body(vec![data(MOST * 4)]), 1);
        let _all = read(&mut teed);
        assert_eq!(read(&mut copies[0]), (vec![MOST * 4], Some(true)));
        let (mut teed, mut copies) = tee(body((0..PIECES + 1).map(|_| data(1)).collect()), 1);
        let _all = read(&mut teed);
        assert_eq!(read(&mut copies[0]).1, Some(false));
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
