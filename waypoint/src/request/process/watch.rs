//! Showing a request and its answer to somebody who only looks on: nobody waits for him, and nothing changes.

use bytes::Bytes;
use http::request::Parts as Head;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame};

use super::stream::Half;
use super::{Broke, NONE, Source};
use crate::process::{self, Body, Watch, Way};
use crate::upstream::{Answer, ReadAhead};

/// The request: its head now, the rest as it passes.
pub(super) fn request(
    mut half: Half,
    head: &Head,
    authority: &str,
    body: &mut Source,
) -> Result<(), Broke> {
    let ends = body.is_end_stream();
    if half.modes.there.headers {
        let headers = process::request_headers(head, authority);
        let message = process::headers(Way::There, headers, ends, half.beside());
        half.mention(message)?;
    }
    if let Some(eye) = Eye::of(half, ends) {
        body.watched_by(Box::new(eye));
    }
    Ok(())
}

/// Its answer.
pub(super) fn answer(mut half: Half, answer: &mut Response<Answer>) -> Result<(), Broke> {
    let ends = answer.body().is_end_stream();
    if half.modes.back.headers {
        let headers = process::answer_headers(answer.status(), answer.headers());
        let message = process::headers(Way::Back, headers, ends, half.beside());
        half.mention(message)?;
    }
    if let Some(eye) = Eye::of(half, ends) {
        let body = std::mem::replace(answer.body_mut(), Answer::empty());
        let mut body = ReadAhead::of(body);
        body.watched_by(Box::new(eye));
        *answer.body_mut() = Answer::seen(body);
    }
    Ok(())
}

/// Sees a body for him.
#[derive(Debug)]
struct Eye {
    half: Half,
    /// There is no more to be seen, or he sees no more.
    closed: bool,
}

impl Eye {
    /// None where there is nothing to be seen. What follows a switch of protocols is no body.
    fn of(half: Half, ends: bool) -> Option<Self> {
        let parts = half.parts();
        let shown = parts.body == Body::Pieces || parts.trailers;
        (shown && !ends && !half.switches).then_some(Self {
            half,
            closed: false,
        })
    }

    fn piece(&mut self, piece: Bytes, last: bool) {
        if self.half.parts().body == Body::Pieces {
            let message = process::body(self.half.way, piece, last, self.half.beside());
            self.say(message);
        }
        self.closed |= last;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.half.parts().trailers {
            let message = process::trailers(self.half.way, trailers, self.half.beside());
            self.say(message);
        }
        self.closed = true;
    }

    /// Whoever does not hear it is told nothing further.
    fn say(&mut self, message: Result<Bytes, String>) {
        if let Err(why) = self.half.mention(message) {
            tracing::debug!(?why, "a processor sees no more of a body");
            self.closed = true;
        }
    }
}

impl Watch for Eye {
    fn sees(&mut self, frame: &Frame<Bytes>, last: bool) {
        if self.closed {
            return;
        }
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(piece), _) => self.piece(piece.clone(), last),
            (None, Some(trailers)) => self.trailers(trailers),
            (None, None) => {}
        }
    }

    fn end(&mut self) {
        if !self.closed {
            self.piece(NONE, true);
        }
    }
}
