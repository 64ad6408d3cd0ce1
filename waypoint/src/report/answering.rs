//! What expressions may ask of an answer that goes back: as it is now, whoever has changed it.

use std::borrow::Cow;
use std::net::SocketAddr;

use expression::{Attribute as A, Fields, Subject, Value};
use http::header::{CONTENT_LENGTH, REFERER};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::facts::{Request, joined, said, whole};
use super::line::text;

/// It.
pub(super) struct Answering<'a> {
    /// As if it had ended here.
    pub(super) request: Request<'a>,
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    /// Of the request.
    pub(super) asked: &'a HeaderMap,
    pub(super) destination: SocketAddr,
}

impl Subject for Answering<'_> {
    fn attribute(&self, attribute: A) -> Value<'_> {
        let story = self.request.story;
        let answered = story.tries > 0;
        let number = |value: Option<&HeaderValue>| match value.and_then(text) {
            Some(digits) => digits.parse().map_or(Value::Null, Value::Int),
            None => Value::Null,
        };
        match attribute {
            A::Code => Value::Int(self.status.as_u16().into()),
            A::CodeDetails => said(
                story
                    .detail
                    .as_deref()
                    .or(answered.then_some("via_upstream")),
            ),
            // None of it has gone yet; what is to come is known where that is said.
            A::ResponseSize | A::ResponseTotalSize => number(self.headers.get(CONTENT_LENGTH)),
            A::GrpcStatus => number(self.headers.get("grpc-status")),
            A::BackendLatency if answered => Value::Duration(whole(self.request.took)),
            A::Referer => said(self.asked.get(REFERER).and_then(text)),
            A::SourceAddress => Value::text(story.caller.client.address.to_string()),
            A::DestinationAddress => Value::text(self.destination.to_string()),
            other => self.request.attribute(other),
        }
    }

    fn field(&self, of: Fields, name: &str) -> Option<Cow<'_, str>> {
        match of {
            Fields::RequestHeaders => joined(self.asked, name),
            Fields::ResponseHeaders => joined(self.headers, name),
            Fields::ResponseTrailers => None,
        }
    }
}
