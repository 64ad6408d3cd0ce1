//! Bodies on their way: a client's to an endpoint ([`Outgoing`]), an endpoint's to a client ([`Answer`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::ahead::ReadAhead;
use super::host::{Host, Place};
use super::kept::Reading;
use super::link::Link;
use super::piped::Piped;
use super::tee::{Copied, Teed, tee};
use crate::call::{Held, of_trailers};
use crate::report::{Counted, Report};

/// A body that ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// Its connection broke, or was not spoken properly.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// It took longer than it may.
    #[error("the time for the whole request has passed")]
    Late,
    /// Nothing came for too long.
    #[error("no byte for too long")]
    Idle,
    /// What was to be sent again has not been kept.
    #[error("the body was not kept")]
    Gone,
}

/// What goes to an endpoint.
#[derive(Debug, Default)]
pub enum Outgoing {
    /// Nothing.
    #[default]
    Empty,
    /// All of it at once.
    Whole(Option<Bytes>),
    /// As it comes from the client, no faster than the endpoint takes it.
    Streamed(Teed<Counted<ReadAhead>>),
    /// The same, and what has passed is kept for another try.
    Kept(Reading),
    /// A copy of one that goes elsewhere.
    Copied(Copied),
    /// What somebody makes of the client's.
    Piped(Teed<ReadAhead<Piped>>),
}

impl Outgoing {
    /// Of a request as it came; `kept`: it may be sent more than once.
    pub fn of(body: ReadAhead, kept: bool, report: &mut Report) -> Self {
        Self::with_copies(body, kept, report, 0).0
    }

    /// The same, and as many copies of it.
    pub fn with_copies(
        body: ReadAhead,
        kept: bool,
        report: &mut Report,
        copies: usize,
    ) -> (Self, Vec<Self>) {
        if body.is_end_stream() {
            let empty = || Self::Empty;
            return (
                Self::Empty,
                std::iter::repeat_with(empty).take(copies).collect(),
            );
        }
        let (body, copies) = tee(report.received(body), copies);
        let body = match kept {
            true => Self::Kept(Reading::of(body)),
            false => Self::Streamed(body),
        };
        (body, copies.into_iter().map(Self::Copied).collect())
    }

    /// What somebody makes of a request's body, and as many copies of it. It is made once.
    pub fn piped(body: ReadAhead<Piped>, copies: usize) -> (Self, Vec<Self>) {
        let (body, copies) = tee(body, copies);
        let copies = copies.into_iter().map(Self::Copied);
        (Self::Piped(body), copies.collect())
    }

    /// Of a copy: tells whether it was given up because it was too far behind.
    pub(crate) fn behind(&self) -> impl Fn() -> bool + Send + use<> {
        let behind = match self {
            Self::Copied(copy) => Some(copy.behind()),
            _ => None,
        };
        move || behind.as_ref().is_some_and(|behind| behind())
    }

    /// Of a copy: ends when the body that it is of has been read, or will not be.
    pub(crate) fn passed(&self) -> impl Future<Output = ()> + Send + use<> {
        let passed = match self {
            Self::Copied(copy) => Some(copy.passed()),
            _ => None,
        };
        async move {
            if let Some(passed) = passed {
                passed.await;
            }
        }
    }

    /// The same again, if that can be had.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::Streamed(_) | Self::Copied(_) | Self::Piped(_) => None,
            Self::Kept(reading) => reading.again().map(Self::Kept),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut polled = match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(body) => Pin::new(body).poll_frame(cx).map_err(Cut::Http),
            Self::Kept(reading) => reading.poll_frame(cx),
            Self::Copied(copy) => Pin::new(copy).poll_frame(cx),
            Self::Piped(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            of_trailers(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed(body) => body.is_end_stream(),
            Self::Kept(_) => false,
            Self::Copied(copy) => copy.is_end_stream(),
            Self::Piped(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Kept(reading) => reading.size_hint(),
            Self::Copied(copy) => copy.size_hint(),
            Self::Piped(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(length(bytes.as_ref())),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// What goes back to a client.
pub struct Answer {
    kind: Kind,
    clock: Option<Box<Clock>>,
    held: Option<Box<Held>>,
}

/// How long it may take.
struct Clock {
    whole: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Clock {
    fn poll(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<Cut> {
        if let Some(whole) = &mut self.whole
            && whole.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Cut::Late);
        }
        if let Some((limit, sleep)) = &mut self.idle {
            if moved {
                sleep.as_mut().reset(Instant::now() + *limit);
            }
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Cut::Idle);
            }
        }
        Poll::Pending
    }
}

enum Kind {
    Whole(Option<Bytes>),
    /// Over a connection that carries nothing else now.
    Alone {
        body: Incoming,
        link: Option<Box<Link>>,
        home: Arc<Host>,
    },
    /// Over one that looks after itself.
    Alien(Incoming),
    /// What somebody makes of another one.
    Piped(Piped),
    /// Another one, whose beginning was looked at.
    Seen(Box<ReadAhead<Answer>>),
    /// Over one that it shares.
    Shared {
        body: Incoming,
        _place: Place,
    },
}

impl Answer {
    /// Of our own.
    pub fn whole(bytes: Bytes) -> Self {
        Self::of(Kind::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// No body.
    pub fn empty() -> Self {
        Self::of(Kind::Whole(None))
    }

    /// Leaves away what is our own; how long it was, if there was any.
    pub(crate) fn leave_own_away(&mut self) -> Option<usize> {
        match &mut self.kind {
            Kind::Whole(own) => own.take().map(|own| own.len()),
            _ => None,
        }
    }

    /// Of a connection that is driven elsewhere.
    pub(crate) fn alien(body: Incoming) -> Self {
        Self::of(Kind::Alien(body))
    }

    /// What somebody makes of another one.
    pub(crate) fn piped(body: Piped) -> Self {
        Self::of(Kind::Piped(body))
    }

    /// One whose beginning was looked at.
    pub(crate) fn seen(body: ReadAhead<Self>) -> Self {
        Self::of(Kind::Seen(Box::new(body)))
    }

    pub(super) fn alone(body: Incoming, link: Box<Link>, home: Arc<Host>) -> Self {
        let mut kind = Kind::Alone {
            body,
            link: Some(link),
            home,
        };
        kind.go_home();
        Self::of(kind)
    }

    pub(super) fn shared(body: Incoming, place: Place) -> Self {
        Self::of(Kind::Shared {
            body,
            _place: place,
        })
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            clock: None,
            held: None,
        }
    }

    /// What is given back when this goes.
    pub(crate) fn hold(&mut self, held: Held) {
        self.held = Some(Box::new(held));
    }

    /// Its end must come by then, and its bytes no further apart than `idle`.
    pub(crate) fn within(&mut self, whole: Option<Instant>, idle: Option<Duration>) {
        if whole.is_none() && idle.is_none() || self.is_end_stream() {
            return;
        }
        self.clock = Some(Box::new(Clock {
            whole: whole.map(|end| Box::pin(tokio::time::sleep_until(end))),
            idle: idle.map(|limit| (limit, Box::pin(tokio::time::sleep(limit)))),
        }));
    }
}

impl Kind {
    /// A connection whose answer has been read to its end is free for the next request.
    fn go_home(&mut self) {
        if let Self::Alone { body, link, home } = self
            && body.is_end_stream()
            && let Some(link) = link.take()
        {
            home.take_back(link);
        }
    }
}

impl Kind {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let polled = match self {
            Self::Whole(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Self::Shared { body, .. } | Self::Alien(body) => {
                return Pin::new(body).poll_frame(cx).map_err(Cut::Http);
            }
            Self::Piped(body) => return Pin::new(body).poll_frame(cx),
            Self::Seen(body) => return Pin::new(&mut **body).poll_frame(cx),
            Self::Alone { body, link, home } => {
                // Asking first makes the connection read for us; what it then has, we take at once.
                let mut polled = Pin::new(&mut *body).poll_frame(cx);
                if polled.is_pending()
                    && let Some(link) = link
                {
                    link.drive(cx);
                    polled = Pin::new(&mut *body).poll_frame(cx);
                }
                if matches!(polled, Poll::Ready(None))
                    && let Some(link) = link.take()
                {
                    home.take_back(link);
                }
                polled
            }
        };
        self.go_home();
        polled.map_err(Cut::Http)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        let polled = this.kind.poll_frame(cx);
        if let Some(clock) = &mut this.clock
            && let Poll::Ready(cut) = clock.poll(cx, polled.is_ready())
        {
            return Poll::Ready(Some(Err(cut)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Piped(body) => body.is_end_stream(),
            Kind::Seen(body) => body.is_end_stream(),
            Kind::Alone { body, .. } | Kind::Shared { body, .. } | Kind::Alien(body) => {
                body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(length(bytes.as_ref())),
            Kind::Piped(body) => body.size_hint(),
            Kind::Seen(body) => body.size_hint(),
            Kind::Alone { body, .. } | Kind::Shared { body, .. } | Kind::Alien(body) => {
                body.size_hint()
            }
        }
    }
}

fn length(bytes: Option<&Bytes>) -> u64 {
    bytes.map_or(0, |bytes| bytes.len() as u64)
}
