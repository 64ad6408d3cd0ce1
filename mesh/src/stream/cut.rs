//! Cuts a large message into parts while it arrives, so that nobody has to hold all of it.
//!
//! The first answer of a large mesh is one gRPC message of tens of megabytes. Read the usual way
//! it lies in memory as it came, and again decoded, before the first resource is looked at, and
//! the buffer that it came in stays with the stream. But a protobuf message is the sum of its
//! top-level fields: cut between two of them it is two messages of the same type. So:
//!
//! ```text
//!   from the server   │head│ field field field ………………………………………… field │head│ message │
//!                             ▼ cut when there is a part's worth               ▼
//!   to the decoder    │head│more│ field field │head│more│ field … │head│last│ field │head│last│ message │
//! ```
//! What is short is passed on as it is, with the mark. What cannot be a message (a compression
//! nobody asked for, too long, a field without an end) is passed on too: to refuse it, and to say
//! why, is the decoder's trade.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Frame;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, BoxFuture, http};

use crate::wire::{Cursor, Skipped};

/// What a part begins with, in bytes: whether more parts of the message follow.
pub(super) const MARK: usize = 1;
/// The mark of the last part, or of a whole.
pub(super) const LAST: u8 = 0;
/// The mark of a part that others follow.
pub(super) const MORE: u8 = 1;

/// A gRPC channel whose responses arrive in parts of messages.
#[derive(Debug, Clone)]
pub(super) struct InParts<T>(pub(super) T);

impl<T> GrpcService<Body> for InParts<T>
where
    T: GrpcService<Body>,
    T::Future: Send + 'static,
    T::ResponseBody: HttpBody<Data = Bytes> + Unpin,
{
    type ResponseBody = Parts<T::ResponseBody>;
    type Error = T::Error;
    type Future = BoxFuture<http::Response<Self::ResponseBody>, T::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move { Ok(answer.await?.map(Parts::of)) })
    }
}

/// The body of a response, cut anew.
#[derive(Debug)]
pub(super) struct Parts<B> {
    body: B,
    cutter: Cutter,
}

impl<B> Parts<B> {
    pub(super) fn of(body: B) -> Self {
        Self {
            body,
            cutter: Cutter::default(),
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Parts<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            if let Some(cut) = self.cutter.next() {
                return Poll::Ready(Some(Ok(Frame::data(cut))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    let rest = self.cutter.end();
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.cutter.take(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

/// Pure: bytes as they arrive enter, messages and parts of messages leave.
#[derive(Debug, Default)]
struct Cutter {
    held: BytesMut,
    at: At,
    /// How much of `held`, from its beginning, is whole fields.
    whole: usize,
}

/// Where in the stream of messages the beginning of what is held is.
#[derive(Debug, Default, Clone, Copy)]
enum At {
    /// Before a message.
    #[default]
    Head,
    /// In one that is passed on as it is; so many bytes of it are left.
    Short(usize),
    /// In one that is cut; so many bytes of it are left.
    Long(usize),
    /// In one that is no message as far as can be seen; so many bytes of it are left.
    Odd(usize),
    /// Where nothing can be understood any more.
    Lost,
}

impl Cutter {
    fn take(&mut self, data: &[u8]) {
        self.held.extend_from_slice(data);
    }

    /// What can be passed on now.
    fn next(&mut self) -> Option<Bytes> {
        match self.at {
            At::Head => self.head(),
            At::Short(left) => {
                let now = left.min(self.held.len());
                self.at = if now == left {
                    At::Head
                } else {
                    At::Short(left - now)
                };
                self.pass(now)
            }
            At::Long(left) => self.cut(left),
            At::Odd(left) if self.held.len() >= left => {
                self.at = At::Head;
                self.part(left, LAST)
            }
            At::Odd(_) => None,
            At::Lost => self.pass(self.held.len()),
        }
    }

    fn pass(&mut self, length: usize) -> Option<Bytes> {
        (length > 0).then(|| self.held.split_to(length).freeze())
    }

    fn head(&mut self) -> Option<Bytes> {
        if self.held.len() < HEAD {
            return None;
        }
        let mut head = &self.held[..HEAD];
        let (flag, length) = (head.get_u8(), head.get_u32() as usize);
        if flag != 0 || length > super::LARGEST_RESPONSE {
            self.at = At::Lost;
            return self.next();
        }
        self.held.advance(HEAD);
        self.whole = 0;
        if length > SHORT {
            self.at = At::Long(length);
            return self.next();
        }
        self.at = if length == 0 {
            At::Head
        } else {
            At::Short(length)
        };
        Some(head_of(length, LAST))
    }

    fn cut(&mut self, left: usize) -> Option<Bytes> {
        let arrived = self.held.len().min(left);
        while self.whole < arrived.min(PART) {
            let mut cursor = Cursor::new(&self.held[self.whole..arrived]);
            match cursor.skip_field() {
                Skipped::Whole => self.whole = arrived - cursor.left(),
                Skipped::Short if arrived < left => return None,
                Skipped::Short | Skipped::Odd => {
                    self.at = At::Odd(left);
                    return self.next();
                }
            }
        }
        if self.whole == left {
            self.at = At::Head;
            return self.part(left, LAST);
        }
        if self.whole < PART {
            return None;
        }
        let length = std::mem::take(&mut self.whole);
        self.at = At::Long(left - length);
        self.part(length, MORE)
    }

    fn part(&mut self, length: usize, mark: u8) -> Option<Bytes> {
        let mut part = BytesMut::with_capacity(HEAD + MARK + length);
        part.extend_from_slice(&head_of(length, mark));
        part.extend_from_slice(&self.held.split_to(length));
        Some(part.freeze())
    }

    /// The body ends. In the middle of a message that must not look like a good end: a head with
    /// too little behind it says so.
    fn end(&mut self) -> Option<Bytes> {
        let inside = !matches!(self.at, At::Head | At::Lost) || !self.held.is_empty();
        self.held.clear();
        self.at = At::Lost;
        inside.then(|| Bytes::from_static(TOO_SHORT))
    }
}

/// The head of a message of that length, which the mark belongs to.
fn head_of(length: usize, mark: u8) -> Bytes {
    let mut head = BytesMut::with_capacity(HEAD + MARK);
    head.put_u8(0);
    head.put_u32((length + MARK) as u32); // bounded by LARGEST_RESPONSE
    head.put_u8(mark);
    head.freeze()
}

/// gRPC's: a flag for compression, and the length.
const HEAD: usize = 5;
/// A message of two bytes, of which one is there.
const TOO_SHORT: &[u8] = &[0, 0, 0, 0, 2, 0];
/// What is passed on as it is. Small answers, which are nearly all, are applied in one step.
const SHORT: usize = 1 << 20;
/// A part's worth: some 200 workloads, and about what a connection brings at a time.
const PART: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field of a message: short numbers, texts, and now and then a long one.
    fn field() -> impl Strategy<Value = Vec<u8>> {
        let text = |lengths: std::ops::Range<usize>| {
            (1..15u8, lengths).prop_map(|(number, length)| {
                let mut field = vec![number << 3 | 2];
                prost::encoding::encode_varint(length as u64, &mut field);
                field.resize(field.len() + length, b'x');
                field
            })
        };
        prop_oneof![
            20 => text(0..5_000),
            1 => text(0..200_000),
            3 => (1..15u8, any::<u64>()).prop_map(|(number, value)| {
                let mut field = vec![number << 3];
                prost::encoding::encode_varint(value, &mut field);
                field
            }),
            1 => (1..15u8, any::<u64>()).prop_map(|(number, value)| {
                [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
            }),
        ]
    }

    /// A message of fields, and perhaps something at its end that is none.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let odd = prop_oneof![
            9 => Just(vec![]),
            1 => prop::sample::select(vec![vec![3], vec![10, 200, 1, 1], vec![8, 128], vec![0]]),
        ];
        let fields = prop_oneof![
            prop::collection::vec(field(), 0..20),
            prop::collection::vec(field(), 400..600),
        ];
        (fields, odd).prop_map(|(fields, odd)| [fields.concat(), odd].concat())
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0];
        frame.put_u32(message.len() as u32);
        frame.extend_from_slice(message);
        frame
    }

    /// The parts in a stream that was cut, each with its mark.
    fn parts(mut stream: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut parts = Vec::new();
        while !stream.is_empty() {
            let (flag, length) = (stream.get_u8(), stream.get_u32() as usize);
            assert_eq!(flag, 0);
            let mut part = stream.copy_to_bytes(length);
            parts.push((part.get_u8(), part.to_vec()));
        }
        parts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_parts_of_a_message_are_the_message_however_it_arrives(
            messages in prop::collection::vec(message(), 1..4),
            portions in prop::collection::vec(1..40_000usize, 1..20),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
            let (mut cutter, mut left, mut cut) = (Cutter::default(), &*stream, Vec::new());
            for portion in portions.iter().cycle() {
                let now = left.split_off(..(*portion).min(left.len())).unwrap();
                cutter.take(now);
                while let Some(bytes) = cutter.next() {
                    cut.extend_from_slice(&bytes);
                }
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(cutter.end(), None);
            let mut parts = parts(&cut).into_iter();
            for message in messages {
                let mut whole = Vec::new();
                loop {
                    let (mark, part) = parts.next().unwrap();
                    whole.extend_from_slice(&part);
                    if mark == LAST {
                        break;
                    }
                    prop_assert!(part.len() >= PART && message.len() > SHORT);
                    let mut cursor = Cursor::new(&part);
                    while cursor.left() > 0 {
                        prop_assert_eq!(cursor.skip_field(), Skipped::Whole);
                    }
                }
                prop_assert!(whole == message);
            }
            prop_assert!(parts.next().is_none());
        }
    }

    fn cut(stream: &[u8]) -> (Vec<u8>, Option<Bytes>) {
        let mut cutter = Cutter::default();
        cutter.take(stream);
        let cut = std::iter::from_fn(|| cutter.next()).flatten().collect();
        (cut, cutter.end())
    }

    #[test]
    fn what_the_decoder_must_refuse_reaches_it() {
        let compressed = [&[1][..], &frame(b"abc")[1..]].concat();
        assert_eq!(cut(&compressed), (compressed, None));
        let mut endless = vec![0];
        endless.put_u32(u32::MAX);
        assert_eq!(cut(&endless), (endless, None));
    }

    #[test]
    fn an_end_in_the_middle_of_a_message_is_no_good_end() {
        let long = frame(&vec![0x0a; SHORT + 1]);
        for stream in [&frame(b"abc")[..4], &frame(b"abc")[..6], &long[..SHORT]] {
            let (_, rest) = cut(stream);
            assert_eq!(rest.as_deref(), Some(TOO_SHORT));
        }
        assert_eq!(cut(&frame(b"abc")).1, None);
    }
}
