//! Bodies that count what passes, and bring a report to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::{Flag, Meter, Protocol, Report};

/// A request's body: counts.
#[derive(Debug)]
pub struct Counted<B> {
    body: B,
    meter: Arc<Meter>,
    messages: Option<Messages>,
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, meter: Arc<Meter>, grpc: bool) -> Self {
        Self {
            body,
            meter,
            messages: grpc.then(Messages::default),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let this = &mut *self;
            this.meter.bytes.fetch_add(data.len() as u64, Relaxed);
            if let Some(messages) = &mut this.messages {
                this.meter
                    .messages
                    .fetch_add(messages.ended_in(data), Relaxed);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body: counts, looks into the trailers, and ends the report.
#[derive(Debug)]
pub struct Reported<B> {
    body: B,
    report: Option<Report>,
    messages: Messages,
    /// Nothing more will come. A server need not ask for the end of a body whose length it knows.
    ended: bool,
}

impl<B: Body> Reported<B> {
    pub(super) fn new(body: B, report: Report) -> Self {
        Self {
            ended: body.is_end_stream(),
            body,
            report: Some(report),
            messages: Messages::default(),
        }
    }

    /// The report, for what is found out while the body is carried.
    pub fn report(&mut self) -> Option<&mut Report> {
        self.report.as_mut()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Reported<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let this = &mut *self;
        this.ended = frame.is_none() || this.body.is_end_stream();
        let Some(report) = &mut this.report else {
            return Poll::Ready(frame);
        };
        let grpc = report.0.protocol == Protocol::Grpc;
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    report.0.sent += data.len() as u64;
                    if grpc {
                        report.0.messages_sent += this.messages.ended_in(data);
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    if grpc {
                        report.grpc_status(trailers);
                    }
                    report.trailers(trailers);
                }
            }
            Some(Err(_)) => {
                if !report.0.flags.are_trouble() {
                    report.flag(Flag::UpstreamClosed);
                }
                this.report = None;
            }
            None => this.report = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Reported<B> {
    fn drop(&mut self) {
        if let Some(report) = &mut self.report
            && !self.ended
            && !report.0.flags.are_trouble()
        {
            report.flag(Flag::DownstreamClosed);
        }
    }
}

/// Counts gRPC messages: a byte, four bytes of length, and that many bytes, over and over.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Messages {
    /// Of the prefix, so far.
    prefix: u8,
    length: u32,
}

impl Messages {
    /// How many messages have their end in these bytes.
    pub(super) fn ended_in(&mut self, data: &Bytes) -> u64 {
        let (mut data, mut ended) = (&data[..], 0);
        while !data.is_empty() {
            if self.prefix < 5 {
                let byte = data.get_u8();
                if self.prefix > 0 {
                    self.length = self.length << 8 | u32::from(byte);
                }
                self.prefix += 1;
            } else {
                let here = data.len().min(self.length as usize);
                data.advance(here);
                self.length -= here as u32;
            }
            if self.prefix == 5 && self.length == 0 {
                *self = Self::default();
                ended += 1;
            }
        }
        ended
    }
}
