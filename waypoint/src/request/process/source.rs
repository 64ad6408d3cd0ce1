//! The body of a request, as it is on its way from one processor to the next.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::permission::Sample;
use crate::process::Watch;
use crate::report::Report;
use crate::upstream::{Cut, Outgoing, Piped, ReadAhead};

/// It.
#[derive(Debug)]
pub(in crate::request) enum Source {
    /// As the client sends it.
    Client(ReadAhead),
    /// As a processor makes it.
    Made(ReadAhead<Piped>),
}

impl Source {
    /// Becomes what a processor makes of it.
    pub(super) fn become_made(&mut self, made: Piped) -> Self {
        std::mem::replace(self, Self::Made(ReadAhead::of(made)))
    }

    /// Shows somebody all of it, as it comes.
    pub(super) fn watched_by(&mut self, watcher: Box<dyn Watch>) {
        match self {
            Self::Client(body) => body.watched_by(watcher),
            Self::Made(body) => body.watched_by(watcher),
        }
    }

    /// Whether a client sends it, and nobody has counted it yet.
    pub(super) fn is_client_s(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// Its first `most` bytes, or all of it.
    pub(in crate::request) async fn look(&mut self, most: usize) -> Result<Sample, Cut> {
        match self {
            Self::Client(body) => body.look(most).await.map_err(Cut::Http),
            Self::Made(body) => body.look(most).await,
        }
    }

    /// The first `most` bytes, which were looked at, become others.
    pub(super) fn replace(&mut self, most: usize, with: Bytes) {
        match self {
            Self::Client(body) => body.replace(most, with),
            Self::Made(body) => body.replace(most, with),
        }
    }

    /// All of it becomes these bytes.
    pub(super) fn become_whole(&mut self, bytes: Bytes) {
        match self {
            Self::Client(body) => body.become_whole(bytes),
            Self::Made(body) => body.become_whole(bytes),
        }
    }

    /// Its trailers, if all of it was looked at and it has some.
    pub(super) fn trailers(&mut self) -> Option<&mut HeaderMap> {
        match self {
            Self::Client(body) => body.trailers(),
            Self::Made(body) => body.trailers(),
        }
    }

    /// What goes to the app, and copies of it.
    pub(in crate::request) fn outgoing(
        self,
        kept: bool,
        report: &mut Report,
        copies: usize,
    ) -> (Outgoing, Vec<Outgoing>) {
        match self {
            Self::Client(body) => Outgoing::with_copies(body, kept, report, copies),
            Self::Made(body) => Outgoing::piped(body, copies),
        }
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Client(body) => Pin::new(body).poll_frame(cx).map_err(Cut::Http),
            Self::Made(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(body) => body.is_end_stream(),
            Self::Made(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(body) => body.size_hint(),
            Self::Made(body) => body.size_hint(),
        }
    }
}
