//! A stream's responses as the bytes of an HTTP/2 body.
//!
//! A reply enters as its small fields and pointers to resources that were encoded once for
//! everybody; it leaves as pieces of about [`CHUNK`] bytes, written when HTTP/2 asks for them. So
//! a client that does not read holds a list of pointers and one piece, where a message written in
//! a whole would be tens of megabytes for a large mesh, once for each such client.
//!
//! ```text
//! 00 LLLLLLLL │ fields 1, 4, 5, 6 │ field 2 │ field 2 │ field 2 │ …    (protobuf allows any order)
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use api::discovery::DeltaDiscoveryResponse;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use mesh::session::{Entry, Reply};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::sync::mpsc;
use tonic::Status;

/// The body: replies until their sender is gone, then the status it left.
pub(super) struct Responses {
    replies: mpsc::Receiver<Reply>,
    /// Set before the sender is dropped; `Ok` if it is not.
    status: Arc<OnceLock<Status>>,
    current: Option<Writing>,
    ended: bool,
}

/// A reply that is being written.
struct Writing {
    fields: Bytes,
    resources: std::vec::IntoIter<Arc<Entry>>,
    shape: Shape,
}

/// What all resources of a reply have in common.
#[derive(Clone)]
struct Shape {
    type_url: Arc<str>,
    with_aliases: bool,
}

impl Responses {
    pub(super) fn new(replies: mpsc::Receiver<Reply>, status: Arc<OnceLock<Status>>) -> Self {
        Self {
            replies,
            status,
            current: None,
            ended: false,
        }
    }

    fn trailers(&self) -> HeaderMap {
        let ok = Status::ok("");
        let mut trailers = HeaderMap::new();
        let status = self.status.get().unwrap_or(&ok);
        if status.add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", HeaderValue::from_static("13"));
        }
        trailers
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.current.as_mut().and_then(Writing::piece) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.current = None;
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.replies.poll_recv(context)) {
                Some(reply) => self.current = Some(Writing::begin(reply)),
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(self.trailers()))));
                }
            }
        }
    }
}

impl Writing {
    fn begin(reply: Reply) -> Self {
        let length = length(&reply);
        let shape = Shape {
            type_url: reply.type_url.clone(),
            with_aliases: reply.with_aliases,
        };
        let resources = reply.resources.into_iter();
        let head = DeltaDiscoveryResponse {
            system_version_info: reply.version,
            type_url: reply.type_url.to_string(),
            nonce: reply.nonce,
            removed_resources: reply.removed.iter().map(|name| name.to_string()).collect(),
            resources: Vec::new(),
        };
        let mut fields = BytesMut::with_capacity(5 + head.encoded_len());
        fields.put_u8(0); // not compressed
        let total = length + head.encoded_len();
        fields.put_u32(u32::try_from(total).unwrap_or(u32::MAX));
        // A `BytesMut` grows: encoding into it cannot fail.
        let _ = head.encode(&mut fields);
        Self {
            fields: fields.freeze(),
            resources,
            shape,
        }
    }

    /// The next piece; `None` when everything was written.
    fn piece(&mut self) -> Option<Bytes> {
        if !self.fields.is_empty() {
            return Some(std::mem::take(&mut self.fields));
        }
        let mut piece = BytesMut::new();
        while piece.len() < CHUNK {
            let Some(entry) = self.resources.next() else {
                break;
            };
            self.shape.put(&entry, &mut piece);
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

/// Bytes of a reply's resources on the wire.
pub(super) fn length(reply: &Reply) -> usize {
    let shape = Shape {
        type_url: reply.type_url.clone(),
        with_aliases: reply.with_aliases,
    };
    let lengths = reply.resources.iter();
    lengths.map(|entry| delimited(shape.resource(entry))).sum()
}

/// `Resource { version = 1, resource = 2: Any { type_url = 1, value = 2 }, name = 3, aliases = 4 }`
impl Shape {
    /// Length of the `Resource` itself.
    fn resource(&self, entry: &Entry) -> usize {
        let aliases: usize = self.aliases(entry).map(|alias| text(alias)).sum();
        text(&entry.version) + delimited(self.any(entry)) + text(&entry.name) + aliases
    }

    fn any(&self, entry: &Entry) -> usize {
        text(&self.type_url) + text_of(entry.encoded.len())
    }

    fn aliases<'a>(&self, entry: &'a Entry) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let shown = if self.with_aliases { usize::MAX } else { 0 };
        entry.aliases.iter().take(shown)
    }

    fn put(&self, entry: &Entry, to: &mut BytesMut) {
        put_head(2, self.resource(entry), to);
        put(1, entry.version.as_bytes(), to);
        put_head(2, self.any(entry), to);
        put(1, self.type_url.as_bytes(), to);
        put(2, &entry.encoded, to);
        put(3, entry.name.as_bytes(), to);
        for alias in self.aliases(entry) {
            put(4, alias.as_bytes(), to);
        }
    }
}

/// Length with tag and length prefix; all our field numbers take one byte.
fn delimited(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// The same for a text or bytes, which proto3 leaves out when they are empty.
fn text_of(length: usize) -> usize {
    if length == 0 { 0 } else { delimited(length) }
}

fn text(text: &str) -> usize {
    text_of(text.len())
}

fn put(field: u8, bytes: &[u8], to: &mut BytesMut) {
    if !bytes.is_empty() {
        put_head(field, bytes.len(), to);
        to.put_slice(bytes);
    }
}

fn put_head(field: u8, length: usize, to: &mut BytesMut) {
    to.put_u8(field << 3 | 2);
    encode_varint(length as u64, to);
}

/// Large enough for HTTP/2's frames, small enough for thousands of slow clients.
const CHUNK: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use http_body_util::BodyStream;
    use proptest::prelude::*;

    use super::*;

    fn reply(sizes: &[usize], removed: usize, with_aliases: bool) -> Reply {
        let entry = |(place, size): (usize, &usize)| {
            Arc::new(Entry {
                name: format!("name-{place}").into(),
                version: if place % 3 == 0 {
                    "".into()
                } else {
                    "abc".into()
                },
                encoded: vec![7; *size].into(),
                aliases: (0..place % 4)
                    .map(|n| format!("/10.0.0.{n}").into())
                    .collect(),
                node: None,
                services: Box::default(),
            })
        };
        Reply {
            type_url: api::ADDRESS_TYPE.into(),
            nonce: "n1".into(),
            version: "7".into(),
            resources: sizes.iter().enumerate().map(entry).collect(),
            removed: (0..removed).map(|n| format!("gone-{n}").into()).collect(),
            with_aliases,
        }
    }

    async fn through(replies: Vec<Reply>, status: Option<Status>) -> (Vec<Bytes>, HeaderMap) {
        let (sender, receiver) = mpsc::channel(replies.len().max(1));
        for reply in replies {
            sender.try_send(reply).unwrap();
        }
        let left = Arc::new(OnceLock::new());
        if let Some(status) = status {
            left.set(status).unwrap();
        }
        drop(sender);
        let body = BodyStream::new(Responses::new(receiver, left));
        let mut frames: Vec<_> = body.map(Result::unwrap).collect().await;
        let trailers = frames.pop().unwrap().into_trailers().unwrap();
        let data = frames.into_iter().map(|frame| frame.into_data().unwrap());
        (data.collect(), trailers)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the sizes, the bytes are the one gRPC message that prost would have written.
        #[test]
        fn pieces_add_up_to_the_message(
            sizes in prop::collection::vec(prop_oneof![0_usize..300, Just(CHUNK), Just(3 * CHUNK + 1)], 0..300),
            removed in 0_usize..5,
            with_aliases in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let reply = reply(&sizes, removed, with_aliases);
            let (pieces, trailers) = runtime.block_on(through(vec![reply.clone()], None));
            let largest = sizes.iter().max().copied().unwrap_or_default();
            prop_assert!(pieces.iter().all(|piece| piece.len() < CHUNK + largest + 300));
            let bytes = pieces.concat();
            prop_assert_eq!(bytes[0], 0);
            prop_assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 5);
            let decoded = DeltaDiscoveryResponse::decode(&bytes[5..]).unwrap();
            prop_assert_eq!(decoded, reply.into_response());
            prop_assert_eq!(&trailers["grpc-status"], "0");
        }
    }

    #[tokio::test]
    async fn the_status_left_behind_ends_the_stream() {
        let (pieces, trailers) = through(vec![], Some(Status::unavailable("later"))).await;
        assert!(pieces.is_empty());
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "later");
    }
}
