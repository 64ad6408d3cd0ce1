//! One HTTP/1.1 connection to an endpoint.
//!
//! It has no task of its own: whoever uses it drives it, with the same wake-ups that serve the request, so that a
//! request is not handed from task to task. One that nobody uses is not driven either; whether its other end has closed
//! it is seen when it is taken up again ([`Link::usable`]).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use ops::threads::here;
use tokio::time::Instant;

use super::body::Outgoing;
use super::lobby::Ticket;
use super::stream::Stream;
use super::{Failed, Unanswered};
use crate::limit::Connections;

/// A connection and the way into it.
pub(crate) struct Link {
    sender: SendRequest<Outgoing>,
    connection: Connection<TokioIo<Stream>, Outgoing>,
    /// It has ended; it must not be driven any more.
    over: bool,
    /// How many requests it has carried.
    pub(super) carried: u32,
    pub(super) since: Instant,
    born: Instant,
    /// The thread that made it.
    pub(super) home: usize,
    /// Where connections are counted.
    pub(super) ticket: Option<Ticket>,
}

impl Link {
    /// HTTP/1.1 over a fresh stream.
    pub(super) async fn begin(stream: Stream, ticket: Option<Ticket>) -> Result<Box<Self>, Failed> {
        let begun = builder().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = begun.map_err(Failed::Http)?;
        let now = Instant::now();
        Ok(Box::new(Self {
            sender,
            connection,
            over: false,
            carried: 0,
            since: now,
            born: now,
            home: here(),
            ticket,
        }))
    }

    /// Whether it is to be given no further request.
    pub(super) fn is_worn(&self, each: &Connections) -> bool {
        each.is_over(self.born, self.carried) || each.is_late(self.since)
    }

    /// Whether it can carry another request now.
    pub(super) fn usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.over && self.sender.is_ready()
    }

    /// Whether it has carried a request before: the endpoint may be closing it at this moment.
    pub(super) fn is_used(&self) -> bool {
        self.carried > 1
    }

    /// Moves what can be moved.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.over && Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.over = true;
        }
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Unanswered> {
        self.carried += 1;
        let mut sent = std::pin::pin!(self.sender.try_send_request(request));
        poll_fn(|cx| {
            if !self.over && Pin::new(&mut self.connection).poll(cx).is_ready() {
                self.over = true;
            }
            match sent.as_mut().poll(cx) {
                Poll::Ready(Ok(answer)) => Poll::Ready(Ok(answer)),
                Poll::Ready(Err(mut error)) => Poll::Ready(Err(match error.take_message() {
                    Some(request) => Unanswered::unsent(Failed::Closed, request),
                    None => Failed::Http(error.into_error()).into(),
                })),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// How we speak HTTP/1.1 to apps.
pub(super) fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(MOST_HEADERS)
        .max_buf_size(LARGEST_HEAD)
        .writev(false);
    builder
}

/// Header fields of an answer.
const MOST_HEADERS: usize = 256;
/// Bytes of an answer's head, and of what is read ahead of its body.
const LARGEST_HEAD: usize = 128 << 10;
