//! A long answer to an operator, written piece by piece: what is on its way is a few small chunks, whatever its length.
//!
//! 1. it is written on a thread of its own, into a buffer of one chunk      (`write`)
//! 2. a chunk that is full waits until there is room for it                  (`Chunks`)
//! 3. the connection takes chunks as fast as the caller reads                (`Received`)
//!
//! Whoever writes must hold no lock meanwhile: a caller may take his time. One who takes nothing for [`PATIENCE`], or who
//! has gone, ends the writing.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// What `write` writes, as it is written.
pub fn streamed(
    content: &'static str,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
) -> Response {
    let body = Body::new(written(write, PATIENCE));
    ([(header::CONTENT_TYPE, content)], body).into_response()
}

fn written(
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    patience: Duration,
) -> Received {
    let (chunks, received) = mpsc::channel(CHUNKS);
    let to = Chunks {
        chunks,
        runtime: Handle::current(),
        patience,
    };
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(CHUNK, to);
        // An error here means that the caller has gone.
        if write(&mut out).and_then(|()| out.flush()).is_err() {
            // What is left in the buffer is for nobody.
            let _ = out.into_parts();
        }
    });
    Received(received)
}

/// Hands what is written to the connection, and waits for it.
struct Chunks {
    chunks: mpsc::Sender<Bytes>,
    runtime: Handle,
    patience: Duration,
}

impl io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(CHUNK)];
        let chunk = Bytes::copy_from_slice(taken);
        let sent = self.chunks.send_timeout(chunk, self.patience);
        let sent = self.runtime.block_on(sent);
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The answer's body.
struct Received(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// Bytes of one chunk, and how many may wait.
const CHUNK: usize = 32 << 10;
const CHUNKS: usize = 4;
/// A caller that takes nothing for this long loses his answer, so that he does not keep a thread.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    async fn next(body: &mut Received) -> Option<Bytes> {
        body.0.recv().await
    }

    type Endless = (
        Received,
        Arc<AtomicUsize>,
        mpsc::UnboundedReceiver<io::ErrorKind>,
    );

    /// An endless answer, what of it has been written, and how that ended.
    fn endless(patience: Duration) -> Endless {
        let count = Arc::new(AtomicUsize::new(0));
        let (ended, end) = mpsc::unbounded_channel();
        let counted = count.clone();
        let write = move |out: &mut dyn io::Write| loop {
            if let Err(error) = out.write_all(&[7; 1000]) {
                let _ = ended.send(error.kind());
                return Err(error);
            }
            counted.fetch_add(1000, SeqCst);
        };
        (written(write, patience), count, end)
    }

    #[tokio::test]
    async fn a_long_answer_is_many_small_chunks_in_their_order() {
        let length = 1 << 20;
        let write = move |out: &mut dyn io::Write| {
            (0..length).try_for_each(|number: u32| out.write_all(&number.to_be_bytes()))?;
            // Longer than a chunk, and at once.
            out.write_all(&[7; 3 * CHUNK])
        };
        let (mut body, mut all, mut chunks) = (written(write, PATIENCE), Vec::new(), 0);
        while let Some(chunk) = next(&mut body).await {
            assert!(chunk.len() <= CHUNK, "{}", chunk.len());
            all.extend_from_slice(&chunk);
            chunks += 1;
        }
        let numbers = (0..length).flat_map(u32::to_be_bytes);
        assert!(all.into_iter().eq(numbers.chain([7; 3 * CHUNK])));
        assert!(chunks >= 128, "{chunks}");
    }

    #[tokio::test]
    async fn no_more_is_written_than_the_caller_takes_and_a_few_chunks() {
        let (mut body, written, _end) = endless(PATIENCE);
        let mut taken = 0;
        for _ in 0..20 {
            taken += next(&mut body).await.unwrap().len();
            // What waits, what is in the buffer, and what is being handed over.
            let ahead = written.load(SeqCst).saturating_sub(taken);
            assert!(ahead <= (CHUNKS + 2) * CHUNK, "{ahead} bytes ahead");
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_ends_the_writing() {
        let (mut body, _, mut end) = endless(PATIENCE);
        next(&mut body).await.unwrap();
        drop(body);
        assert_eq!(end.recv().await, Some(io::ErrorKind::BrokenPipe));
    }

    #[tokio::test]
    async fn a_caller_that_takes_nothing_for_long_loses_his_answer() {
        let (_body, written, mut end) = endless(Duration::from_millis(50));
        assert_eq!(end.recv().await, Some(io::ErrorKind::BrokenPipe));
        assert!(written.load(SeqCst) <= (CHUNKS + 2) * CHUNK);
    }
}
