//! Bodies on their way: a client's to an endpoint ([`Outgoing`]), an endpoint's to a client ([`Answer`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::host::{Host, Place};
use super::link::Link;
use crate::report::{Counted, Report};

/// What goes to an endpoint.
#[derive(Debug)]
pub enum Outgoing {
    /// Nothing.
    Empty,
    /// All of it at once.
    Whole(Option<Bytes>),
    /// As it comes from the client, no faster than the endpoint takes it.
    Streamed(Counted<Incoming>),
}

impl Outgoing {
    /// Of a request as it came.
    pub fn of(body: Incoming, report: &mut Report) -> Self {
        if body.is_end_stream() {
            Self::Empty
        } else {
            Self::Streamed(report.received(body))
        }
    }

    /// The same again, if that can be had.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::Streamed(_) => None,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(length(bytes.as_ref())),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// What goes back to a client.
pub struct Answer(Kind);

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
    /// Over one that it shares.
    Shared {
        body: Incoming,
        _place: Place,
    },
}

impl Answer {
    /// Of our own.
    pub fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// No body.
    pub fn empty() -> Self {
        Self(Kind::Whole(None))
    }

    /// Of a connection that is driven elsewhere.
    pub(crate) fn alien(body: Incoming) -> Self {
        Self(Kind::Alien(body))
    }

    pub(super) fn alone(body: Incoming, link: Box<Link>, home: Arc<Host>) -> Self {
        let mut kind = Kind::Alone {
            body,
            link: Some(link),
            home,
        };
        kind.go_home();
        Self(kind)
    }

    pub(super) fn shared(body: Incoming, place: Place) -> Self {
        Self(Kind::Shared {
            body,
            _place: place,
        })
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

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let kind = &mut self.get_mut().0;
        let polled = match kind {
            Kind::Whole(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Kind::Shared { body, .. } | Kind::Alien(body) => {
                return Pin::new(body).poll_frame(cx);
            }
            Kind::Alone { body, link, home } => {
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
        kind.go_home();
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Alone { body, .. } | Kind::Shared { body, .. } | Kind::Alien(body) => {
                body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(length(bytes.as_ref())),
            Kind::Alone { body, .. } | Kind::Shared { body, .. } | Kind::Alien(body) => {
                body.size_hint()
            }
        }
    }
}

fn length(bytes: Option<&Bytes>) -> u64 {
    bytes.map_or(0, |bytes| bytes.len() as u64)
}
