//! A body whose beginning may be looked at before anybody gets it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::permission::Sample;
use crate::process::Watch;

/// It: what was looked at comes first, then the rest.
#[derive(Debug)]
pub struct ReadAhead<B = Incoming> {
    seen: VecDeque<Frame<Bytes>>,
    body: B,
    /// All of it has been seen.
    ended: bool,
    watchers: Vec<Box<dyn Watch>>,
}

impl<B: Body<Data = Bytes> + Unpin> ReadAhead<B> {
    /// Nothing is looked at yet.
    pub fn of(body: B) -> Self {
        Self {
            seen: VecDeque::new(),
            body,
            ended: false,
            watchers: Vec::new(),
        }
    }

    /// Shows somebody all of it: what was looked at already at once, the rest as it comes.
    pub(crate) fn watched_by(&mut self, mut watcher: Box<dyn Watch>) {
        let last = self.seen.len().checked_sub(1).filter(|_| self.ended);
        for (at, frame) in self.seen.iter().enumerate() {
            watcher.sees(frame, last == Some(at) && frame.is_data());
        }
        match self.ended {
            true => watcher.end(),
            false => self.watchers.push(watcher),
        }
    }

    /// The next that nobody has looked at.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.ended = polled.is_none();
        if !self.watchers.is_empty() {
            let last = self.body.is_end_stream();
            for watcher in &mut self.watchers {
                match &polled {
                    Some(Ok(frame)) => watcher.sees(frame, last && frame.is_data()),
                    Some(Err(_)) => {}
                    None => watcher.end(),
                }
            }
        }
        Poll::Ready(polled)
    }

    /// Its first `most` bytes, or all of it. Whoever gets it later gets these too.
    ///
    /// # Errors
    /// It broke off.
    pub async fn look(&mut self, most: usize) -> Result<Sample, B::Error> {
        let mut length = self.length();
        while !self.ended && length <= most {
            let next = poll_fn(|cx| self.poll_next(cx)).await.transpose()?;
            if let Some(frame) = next {
                length += frame.data_ref().map_or(0, Bytes::len);
                self.keep(frame);
            }
        }
        let mut bytes = BytesMut::with_capacity(self.length().min(most));
        for data in self.seen.iter().filter_map(Frame::data_ref) {
            let room = most - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
        Ok(Sample {
            whole: self.length() <= most,
            bytes: bytes.freeze(),
        })
    }

    /// Who sends a body byte by byte would have each of them kept with what it costs to keep a piece, a hundred times as much:
    /// small ones become one.
    fn keep(&mut self, frame: Frame<Bytes>) {
        let small = |data: &Bytes| data.len() < SMALL;
        let before = self.seen.back().and_then(Frame::data_ref);
        if !before.is_some_and(small) || !frame.data_ref().is_some_and(small) {
            return self.seen.push_back(frame);
        }
        let before = self.seen.pop_back().and_then(|it| it.into_data().ok());
        let grown = before.unwrap_or_default().try_into_mut();
        let mut grown = grown.unwrap_or_else(|shared| {
            let mut own = BytesMut::with_capacity(2 * SMALL);
            own.extend_from_slice(&shared);
            own
        });
        grown.extend_from_slice(&frame.into_data().unwrap_or_default());
        self.seen.push_back(Frame::data(grown.freeze()));
    }

    /// Its first `most` bytes, as far as they were looked at, become others.
    pub fn replace(&mut self, most: usize, with: Bytes) {
        let mut left = most;
        let seen = std::mem::take(&mut self.seen);
        if !with.is_empty() {
            self.seen.push_back(Frame::data(with));
        }
        for frame in seen {
            match frame.into_data() {
                Ok(mut data) => {
                    let gone = left.min(data.len());
                    left -= gone;
                    let data = data.split_off(gone);
                    if !data.is_empty() {
                        self.seen.push_back(Frame::data(data));
                    }
                }
                Err(frame) => self.seen.push_back(frame),
            }
        }
    }

    /// Its trailers, if all of it was looked at and it has some.
    pub fn trailers(&mut self) -> Option<&mut HeaderMap> {
        let last = self.seen.back_mut().filter(|_| self.ended);
        last.and_then(Frame::trailers_mut)
    }

    /// All of it becomes these bytes.
    pub fn become_whole(&mut self, bytes: Bytes) {
        self.seen.clear();
        self.ended = true;
        self.replace(0, bytes);
    }

    /// Bytes that were seen.
    fn length(&self) -> usize {
        let pieces = self.seen.iter().filter_map(Frame::data_ref);
        pieces.map(Bytes::len).sum()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ReadAhead<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.seen.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.seen.is_empty() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.seen.is_empty() {
            return self.body.size_hint();
        }
        let seen = self.length() as u64;
        // With trailers there is no length that could be said before.
        let trailers = self.seen.iter().any(Frame::is_trailers);
        let rest = match self.ended {
            true => SizeHint::with_exact(0),
            false => self.body.size_hint(),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(seen + rest.lower());
        if let Some(upper) = rest.upper().filter(|_| !trailers) {
            hint.set_upper(seen + upper);
        }
        hint
    }
}

/// Bytes of a piece that is not kept as it came.
const SMALL: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    fn pieces(lengths: &[usize]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
        let data = |length: &usize| Ok(Frame::data(Bytes::from(vec![b'x'; *length])));
        let frames: Vec<_> = lengths.iter().map(data).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn what_was_looked_at_is_not_gone() {
        for (lengths, most, shown, whole) in [
            (&[3, 4][..], 100, 7, true),
            (&[3, 4], 7, 7, true),
            (&[3, 4], 6, 6, false),
            (&[3, 4, 5], 2, 2, false),
            (&[], 9, 0, true),
        ] {
            let mut body = ReadAhead::of(pieces(lengths));
            for _ in 0..2 {
                let sample = body.look(most).await.unwrap();
                assert_eq!((sample.bytes.len(), sample.whole), (shown, whole));
            }
            let all = body.collect().await.unwrap().to_bytes();
            assert_eq!(all.len(), lengths.iter().sum::<usize>());
        }
    }

    #[tokio::test]
    async fn what_comes_byte_by_byte_is_kept_in_pieces_of_some_size() {
        let bytes: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
        let frame = |byte: &u8| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(&[*byte])));
        let mut frames: Vec<_> = bytes.iter().map(frame).collect();
        // One that stands alone stays as it is, and nothing is put behind it that is not small.
        frames.insert(50_000, Ok(Frame::data(Bytes::from(vec![7; 2 * SMALL]))));
        let mut all = bytes;
        all.splice(50_000..50_000, vec![7; 2 * SMALL]);
        let mut body = ReadAhead::of(StreamBody::new(futures_util::stream::iter(frames)));
        let sample = body.look(200_000).await.unwrap();
        assert!(sample.whole && sample.bytes == all);
        assert!(
            body.seen.len() <= all.len() / SMALL + 4,
            "{}",
            body.seen.len()
        );
        assert_eq!(body.collect().await.unwrap().to_bytes(), all);
    }

    #[tokio::test]
    async fn its_length_and_its_trailers_stay_what_they_are() {
        let mut body = ReadAhead::of(Full::new(Bytes::from_static(b"12345")));
        let sample = body.look(2).await.unwrap();
        assert_eq!(&sample.bytes[..], b"12");
        assert_eq!(body.size_hint().exact(), Some(5));

        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"1"))),
            Ok(Frame::trailers(HeaderMap::new())),
        ];
        let mut body = ReadAhead::of(StreamBody::new(futures_util::stream::iter(frames)));
        assert!(body.look(9).await.unwrap().whole);
        assert_eq!(body.size_hint().exact(), None);
        assert!(body.collect().await.unwrap().trailers().is_some());
    }

    #[tokio::test]
    async fn what_was_looked_at_may_become_something_else() {
        for (lengths, most, all) in [
            (&[3, 4][..], 100, "new"),
            (&[3, 4], 5, "newxx"),
            (&[3, 4], 3, "newxxxx"),
            (&[], 3, "new"),
        ] {
            let mut body = ReadAhead::of(pieces(lengths));
            body.look(most).await.unwrap();
            body.replace(most, Bytes::from_static(b"new"));
            assert_eq!(body.collect().await.unwrap().to_bytes(), all);
        }
        let mut body = ReadAhead::of(pieces(&[9]));
        body.become_whole(Bytes::from_static(b"all"));
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "all");
    }

    #[derive(Debug, Default, Clone)]
    struct Eye(Arc<Mutex<Vec<String>>>);

    impl Watch for Eye {
        fn sees(&mut self, frame: &Frame<Bytes>, last: bool) {
            let what = match frame.data_ref() {
                Some(data) => format!("{}{}", data.len(), if last { " last" } else { "" }),
                None => "trailers".to_owned(),
            };
            self.0.lock().unwrap().push(what);
        }

        fn end(&mut self) {
            self.0.lock().unwrap().push("end".to_owned());
        }
    }

    #[tokio::test]
    async fn who_watches_it_sees_each_piece_once_whenever_it_was_looked_at() {
        for looked in [None, Some(2), Some(100)] {
            let mut body = ReadAhead::of(pieces(&[3, 4, 5]));
            if let Some(most) = looked {
                body.look(most).await.unwrap();
            }
            let eye = Eye::default();
            body.watched_by(Box::new(eye.clone()));
            // What becomes of it later is no business of his.
            body.replace(3, Bytes::from_static(b"x"));
            assert!(!body.collect().await.unwrap().to_bytes().is_empty());
            let seen = eye.0.lock().unwrap().join(",");
            let all = match looked {
                Some(100) => "12 last,end",
                _ => "3,4,5,end",
            };
            assert_eq!(seen, all, "{looked:?}");
        }
        let mut body = ReadAhead::of(Full::new(Bytes::from_static(b"12345")));
        let eye = Eye::default();
        body.watched_by(Box::new(eye.clone()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "12345");
        assert_eq!(eye.0.lock().unwrap().first().unwrap(), "5 last");
    }

    #[test]
    fn a_body_that_was_never_looked_at_is_as_it_is() {
        let mut body = ReadAhead::of(pieces(&[1]));
        assert!(!body.is_end_stream());
        assert!(body.frame().now_or_never().flatten().is_some());
        assert!(body.frame().now_or_never().flatten().is_none());
        assert!(body.is_end_stream());
    }
}
