//! Messages to somebody for whom nobody waits: so many bytes of them wait for him, and no more.
//!
//! Who does not keep up with them is told nothing further: what came after a gap would mean something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::upstream::Pipe;

/// Where they go in.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    to: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
    /// Bytes that may wait.
    most: usize,
    behind: CancellationToken,
}

/// What takes them on.
#[derive(Debug)]
pub(super) struct Relay {
    from: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    to: Pipe,
}

/// He did not keep up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Behind;

/// `most`: bytes that may wait for whoever reads `to`. The token says that he did not keep up.
pub(super) fn lane(to: Pipe, most: usize) -> (Lane, Relay, CancellationToken) {
    let (sender, from) = mpsc::channel(MESSAGES);
    let (waiting, behind) = (Arc::<AtomicUsize>::default(), CancellationToken::new());
    let lane = Lane {
        to: sender,
        waiting: waiting.clone(),
        most,
        behind: behind.clone(),
    };
    (lane, Relay { from, waiting, to }, behind)
}

impl Lane {
    /// Without waiting.
    pub(super) fn put(&self, message: Bytes) -> Result<(), Behind> {
        let length = message.len();
        let before = self.waiting.fetch_add(length, Relaxed);
        // One alone may be as large as it is.
        let fits = before == 0 || before + length <= self.most;
        if self.behind.is_cancelled() || !fits || self.to.try_send(message).is_err() {
            self.behind.cancel();
            return Err(Behind);
        }
        Ok(())
    }
}

impl Relay {
    /// Until there will be no more, or nobody reads them.
    pub(super) async fn run(mut self) {
        while let Some(message) = self.from.recv().await {
            let length = message.len();
            let gone = self.to.data(message).await.is_err();
            self.waiting.fetch_sub(length, Relaxed);
            if gone {
                return;
            }
        }
    }
}

/// However small they are.
const MESSAGES: usize = 1024;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::upstream::open_pipe;

    #[tokio::test]
    async fn nobody_waits_for_whoever_does_not_keep_up() {
        let (pipe, body) = open_pipe();
        let (lane, relay, behind) = lane(pipe, 10);
        let relay = tokio::spawn(relay.run());
        let piece = |length: usize| Bytes::from(vec![b'x'; length]);
        // Nobody reads; one alone may be larger than all that may wait.
        assert_eq!(lane.put(piece(20)), Ok(()));
        assert_eq!(lane.put(piece(1)), Err(Behind));
        assert!(behind.is_cancelled());
        assert_eq!(lane.put(piece(0)), Err(Behind), "there would be a gap");
        drop(lane);
        relay.await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 20);
    }

    #[tokio::test]
    async fn who_keeps_up_is_told_everything() {
        let (pipe, mut body) = open_pipe();
        let (lane, relay, behind) = lane(pipe, 10);
        let relay = tokio::spawn(relay.run());
        for _ in 0..3_000 {
            assert_eq!(lane.put(Bytes::from_static(b"12345678")), Ok(()));
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "12345678");
            tokio::task::yield_now().await;
        }
        drop(lane);
        relay.await.unwrap();
        assert!(body.frame().await.is_none() && !behind.is_cancelled());
    }
}
