//! A request's body that may have to be sent again.
//!
//! It goes to the first endpoint as it comes; what has passed is kept, up to a limit. Another try begins with what is
//! kept and goes on where the first one stopped. Beyond the limit nothing is kept, and there is no other try.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::ahead::ReadAhead;
use super::body::Cut;
use super::tee::Teed;
use crate::report::Counted;

/// One try's view of the body.
#[derive(Debug)]
pub struct Reading {
    kept: Arc<Mutex<Kept>>,
    /// How many of what is kept this try has sent; beyond all when it was the one that passed the limit.
    at: usize,
    length: SizeHint,
}

#[derive(Debug)]
struct Kept {
    body: Teed<Counted<ReadAhead>>,
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

impl Reading {
    pub(super) fn of(body: Teed<Counted<ReadAhead>>) -> Self {
        Self {
            length: body.size_hint(),
            kept: Arc::new(Mutex::new(Kept {
                body,
                frames: Vec::new(),
                bytes: 0,
                gone: false,
                ended: false,
            })),
            at: 0,
        }
    }

    /// From the beginning, if that is still there.
    pub(super) fn again(&self) -> Option<Self> {
        (!locked(&self.kept).gone).then(|| Self {
            kept: self.kept.clone(),
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
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut kept = locked(&self.kept);
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
        let polled = Pin::new(&mut kept.body).poll_frame(cx).map_err(Cut::Http);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if kept.keep(frame) => {
                self.at += 1;
                // Nothing follows trailers, and not everybody asks whether something does.
                kept.ended |= frame.is_trailers();
            }
            Poll::Ready(Some(Ok(_))) => self.at = BEYOND,
            Poll::Ready(None) => kept.ended = true,
            _ => {}
        }
        polled
    }
}

impl Kept {
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

fn locked(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it costs to keep a piece, however small: else a body that comes byte by byte would take a hundred times as much.
const COST: usize = 128;
/// What is kept of one request: 64 KiB, if they come in pieces of a KiB or more.
const MOST: usize = (64 << 10) + 64 * COST;
const BEYOND: usize = usize::MAX;

#[cfg(test)]
mod tests {
    use super::*;

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
