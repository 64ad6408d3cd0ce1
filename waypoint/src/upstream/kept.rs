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
        if let Piece::Data(data) = &piece {
            self.bytes += data.len();
        }
        if self.bytes > MOST {
            self.gone = true;
            self.frames = Vec::new();
            return false;
        }
        self.frames.push(piece);
        true
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

/// Bytes that are kept of one request.
const MOST: usize = 64 << 10;
const BEYOND: usize = usize::MAX;
