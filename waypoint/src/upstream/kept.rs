//! A request's body that may have to be sent again.
//!
//! It goes to the first endpoint as it comes; what has passed is kept, up to a limit. Another try begins with what is
//! kept and goes on where the first one stopped. Beyond the limit nothing is kept, and there is no other try.
//!
//! What goes over HTTP/2 is read by a task of its connection, which goes on after an answer, also after one that leads to
//! another try. So whoever has begun last reads on: of those before him each gets an error in the place of what it has not read.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::ahead::ReadAhead;
use super::body::Cut;
use super::tee::Teed;
use crate::report::Counted;

/// One try's view of the body.
#[derive(Debug)]
pub struct Reading<B = Teed<Counted<ReadAhead>>> {
    kept: Arc<Mutex<Kept<B>>>,
    /// Of tries, from 0 on.
    number: u32,
    /// How many of what is kept this try has sent; beyond all when it was the one that passed the limit.
    at: usize,
    length: SizeHint,
}

#[derive(Debug)]
struct Kept<B> {
    body: B,
    /// Of those that have begun.
    newest: u32,
    /// Whoever waits for the body.
    waits: Option<Waker>,
    frames: Vec<Piece>,
    /// Of all of them, with what it costs to keep each.
    bytes: usize,
    /// More passed than is kept.
    gone: bool,
    ended: bool,
}

#[derive(Debug, Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B: Body<Data = Bytes> + Unpin> Reading<B> {
    pub(super) fn of(body: B) -> Self {
        Self {
            length: body.size_hint(),
            kept: Arc::new(Mutex::new(Kept {
                body,
                newest: 0,
                waits: None,
                frames: Vec::new(),
                bytes: 0,
                gone: false,
                ended: false,
            })),
            number: 0,
            at: 0,
        }
    }

    /// From the beginning, if that is still there.
    pub(super) fn again(&self) -> Option<Self> {
        (!locked(&self.kept).gone).then(|| Self {
            kept: self.kept.clone(),
            number: self.number.saturating_add(1),
            at: 0,
            length: self.length,
        })
    }

    /// Whether all of it is kept: then several may read it at a time.
    pub(crate) fn is_whole(&self) -> bool {
        let kept = locked(&self.kept);
        kept.ended && !kept.gone
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.length
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>>
    where
        Cut: From<B::Error>,
    {
        let mut kept = locked(&self.kept);
        if self.number > kept.newest {
            kept.newest = self.number;
            kept.waits.take().into_iter().for_each(Waker::wake);
        }
        if let Some(piece) = kept.frames.get(self.at) {
            let frame = piece.clone().into();
            self.at += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        if kept.gone && self.at != BEYOND {
            return Poll::Ready(Some(Err(Cut::Gone)));
        }
        if kept.ended {
            return Poll::Ready(None);
        }
        if self.number < kept.newest {
            return Poll::Ready(Some(Err(Cut::Gone)));
        }
        let polled = Pin::new(&mut kept.body).poll_frame(cx).map_err(Cut::from);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if kept.keep(frame) => {
                self.at += 1;
                // Nothing follows trailers, and not everybody asks whether something does.
                kept.ended |= frame.is_trailers();
            }
            Poll::Ready(Some(Ok(_))) => self.at = BEYOND,
            Poll::Ready(None) => kept.ended = true,
            Poll::Ready(Some(Err(_))) => {}
            Poll::Pending => kept.waits = Some(cx.waker().clone()),
        }
        polled
    }
}

impl<B> Kept<B> {
    /// Whether there was room.
    fn keep(&mut self, frame: &Frame<Bytes>) -> bool {
        if self.gone {
            return false;
        }
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Piece::Data(data.clone()),
            (None, trailers) => Piece::Trailers(trailers.cloned().unwrap_or_default()),
        };
        self.bytes += piece.weight();
        if self.bytes > MOST {
            self.gone = true;
            self.frames = Vec::new();
            return false;
        }
        self.frames.push(piece);
        true
    }
}

impl Piece {
    /// In bytes, with what it costs to keep it.
    fn weight(&self) -> usize {
        match self {
            Self::Data(data) => COST + data.len(),
            Self::Trailers(_) => COST,
        }
    }
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

fn locked<B>(kept: &Mutex<Kept<B>>) -> MutexGuard<'_, Kept<B>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it costs to keep a piece, however small: else a body that comes byte by byte would take a hundred times as much.
const COST: usize = 128;
/// What is kept of one request: 64 KiB, if they come in pieces of a KiB or more.
const MOST: usize = (64 << 10) + 64 * COST;
const BEYOND: usize = usize::MAX;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::upstream::{Piped, pipe};

    async fn next(reading: &mut Reading<Piped>) -> Option<Result<Bytes, Cut>> {
        let frame = poll_fn(|cx| reading.poll_frame(cx));
        let frame = timeout(Duration::from_secs(60), frame).await;
        let frame = frame.expect("somebody is told of what comes");
        frame.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn who_was_given_up_takes_nothing_from_who_came_after_him() {
        let (pipe, body) = pipe();
        let mut first = Reading::of(body);
        let mut second = first.again().unwrap();
        pipe.data(Bytes::from_static(b"one")).await.unwrap();
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "one");
        // He waits for more, and for nobody.
        let waits = tokio::spawn(async move { next(&mut first).await });
        tokio::task::yield_now().await;
        assert_eq!(next(&mut second).await.unwrap().unwrap(), "one");
        let given_up = waits.await.unwrap();
        assert!(matches!(given_up, Some(Err(Cut::Gone))), "{given_up:?}");
        let goes_on = tokio::spawn(async move {
            let two = next(&mut second).await.unwrap().unwrap();
            (two, next(&mut second).await.is_none())
        });
        pipe.data(Bytes::from_static(b"two")).await.unwrap();
        pipe.end().await.unwrap();
        let (two, ended) = goes_on.await.unwrap();
        assert!(two == "two" && ended);
    }

    #[tokio::test]
    async fn of_what_is_kept_whole_all_who_read_it_have_all() {
        let (pipe, body) = pipe();
        let mut first = Reading::of(body);
        pipe.data(Bytes::from_static(b"all")).await.unwrap();
        pipe.end().await.unwrap();
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "all");
        assert!(next(&mut first).await.is_none());
        let mut second = first.again().unwrap();
        let mut third = second.again().unwrap();
        assert_eq!(next(&mut third).await.unwrap().unwrap(), "all");
        assert_eq!(next(&mut second).await.unwrap().unwrap(), "all");
        assert!(next(&mut second).await.is_none());
        assert!(next(&mut third).await.is_none());
    }

    #[test]
    fn what_comes_byte_by_byte_has_room_for_less_than_what_comes_in_pieces() {
        let weigh = |pieces: usize, length: usize| {
            let piece = Piece::Data(Bytes::from(vec![0; length]));
            pieces * piece.weight()
        };
        assert!(weigh(4, 16 << 10) <= MOST && weigh(64, 1 << 10) <= MOST);
        assert!(weigh(1_000, 1) > MOST && weigh(1, 80 << 10) > MOST);
        // Each is kept as one of these.
        assert!(size_of::<Piece>() <= COST);
    }
}
