//! A body that somebody else makes, piece by piece, no faster than its reader takes it.
//!
//! Its maker is given up when the body is dropped. A body whose maker goes before its end has broken off, so that nobody
//! takes half of it for the whole; but one that is made for an open end ends there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::body::Cut;

/// The body.
#[derive(Debug)]
pub struct Piped {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
    /// It ends when nobody makes more.
    open: bool,
    maker: Option<AbortOnDropHandle<()>>,
}

/// Where its pieces go in.
#[derive(Debug, Clone)]
pub struct Pipe(mpsc::Sender<Piece>);

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// The reader has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A body, and where its pieces go in.
pub fn pipe() -> (Pipe, Piped) {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let body = Piped {
        pieces: receiver,
        ended: false,
        open: false,
        maker: None,
    };
    (Pipe(pieces), body)
}

/// One that ends when nobody makes more of it.
pub fn open_pipe() -> (Pipe, Piped) {
    let (pipe, body) = pipe();
    (pipe, Piped { open: true, ..body })
}

impl Piped {
    /// Made by that task.
    #[must_use]
    pub fn made_by(mut self, maker: tokio::task::JoinHandle<()>) -> Self {
        self.maker = Some(AbortOnDropHandle::new(maker));
        self
    }
}

impl Pipe {
    /// Some bytes; nothing for none.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub async fn data(&self, bytes: Bytes) -> Result<(), Gone> {
        match bytes.is_empty() {
            true => Ok(()),
            false => self.put(Piece::Data(bytes)).await,
        }
    }

    /// Trailers, and the end.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub async fn trailers(&self, trailers: HeaderMap) -> Result<(), Gone> {
        self.put(Piece::Trailers(trailers)).await?;
        self.end().await
    }

    /// The end.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub async fn end(&self) -> Result<(), Gone> {
        self.put(Piece::End).await
    }

    async fn put(&self, piece: Piece) -> Result<(), Gone> {
        self.0.send(piece).await.map_err(|_| Gone)
    }
}

impl Body for Piped {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.pieces.poll_recv(cx)) {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => {
                this.ended = true;
                None
            }
            None => {
                this.ended = true;
                (!this.open).then_some(Err(Cut::Gone))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Pieces that wait for the reader.
const PIECES: usize = 4;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_breaks_off_is_no_end_unless_the_end_is_open() {
        let (pipe, body) = pipe();
        pipe.data(Bytes::from_static(b"half")).await.unwrap();
        drop(pipe);
        assert!(body.collect().await.is_err());
        let (pipe, body) = open_pipe();
        pipe.data(Bytes::from_static(b"all")).await.unwrap();
        drop(pipe);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "all");
    }

    #[tokio::test]
    async fn its_maker_goes_with_it() {
        let (pipe, body) = pipe();
        let probe = pipe.clone();
        let body = body.made_by(tokio::spawn(async move {
            let _held = pipe;
            std::future::pending::<()>().await;
        }));
        drop(body);
        assert_eq!(probe.data(Bytes::from_static(b"x")).await, Err(Gone));
    }
}
