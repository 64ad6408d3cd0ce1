//! Both ways between an app's socket and a tunnel, or between two sockets.
//!
//! ```text
//!  app's socket ──hear──▶ queue ──▶ capsules ──▶ tunnel          (so much waits, the rest is dropped)
//!  app's socket ◀──────────────── capsules ◀──── tunnel          (what the socket does not take is dropped)
//! ```
//! It ends when nothing has moved for a while, when the other end ends it, or when a policy is against it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use hbone::datagrams::{Capsules, capsule};
use hbone::{Reader, Tunnel, Writer};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::Failed;
use super::metrics::{Lost, Moved, UdpMetrics};
use super::socket::hear;
use crate::connections::Live;

/// Datagrams that wait to be sent, and bytes of them: some milliseconds of a fast stream.
const WAITING: usize = 256;
const BYTES: usize = 512 << 10;
/// Bytes that wait in all flows of a pod: those whose other ends all stand still are nobody else's loss.
const BYTES_OF_POD: usize = 16 << 20;
/// The other end has said that it ends, or is to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What waits to be sent. The newest is dropped when it is full: what waits already is older, but in order.
pub(super) struct Queue {
    sender: mpsc::Sender<Bytes>,
    bytes: AtomicUsize,
    /// The same of all flows of its pod.
    of_pod: Arc<AtomicUsize>,
}

impl Queue {
    /// `of_pod`: bytes that wait in all of the pod.
    pub(super) fn new(of_pod: Arc<AtomicUsize>) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (sender, waiting) = mpsc::channel(WAITING);
        let queue = Self {
            sender,
            bytes: AtomicUsize::new(0),
            of_pod,
        };
        (Arc::new(queue), waiting)
    }

    /// False when it is full.
    pub(super) fn push(&self, payload: Bytes) -> bool {
        let n = payload.len();
        let full =
            self.bytes.load(Relaxed) + n > BYTES || self.of_pod.load(Relaxed) + n > BYTES_OF_POD;
        if full {
            return false;
        }
        self.bytes.fetch_add(n, Relaxed);
        self.of_pod.fetch_add(n, Relaxed);
        let pushed = self.sender.try_send(payload).is_ok();
        if !pushed {
            self.left(n);
        }
        pushed
    }

    /// The oldest. Cancel safe.
    pub(super) async fn pop(&self, waiting: &mut mpsc::Receiver<Bytes>) -> Bytes {
        match waiting.recv().await {
            Some(payload) => {
                self.left(payload.len());
                payload
            }
            // It holds a sender itself.
            None => std::future::pending().await,
        }
    }

    fn left(&self, n: usize) {
        self.bytes.fetch_sub(n, Relaxed);
        self.of_pod.fetch_sub(n, Relaxed);
    }
}

impl Drop for Queue {
    /// What waited is gone with it.
    fn drop(&mut self) {
        self.left(self.bytes.load(Relaxed));
    }
}

/// What is being carried, and how it is counted.
pub(super) struct Carrying<'a> {
    pub(super) queue: &'a Queue,
    pub(super) waiting: &'a mut mpsc::Receiver<Bytes>,
    pub(super) live: &'a Live,
    pub(super) metrics: &'a UdpMetrics,
    /// Ends when nothing has moved for so long.
    pub(super) idle: Duration,
}

/// When something last moved.
struct Last {
    begun: Instant,
    /// Milliseconds after that.
    moved: AtomicU64,
}

impl Last {
    fn new() -> Self {
        let (begun, moved) = (Instant::now(), AtomicU64::new(0));
        Self { begun, moved }
    }

    fn moved(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Relaxed);
    }

    async fn idle(&self, idle: Duration) {
        loop {
            let due = self.begun + Duration::from_millis(self.moved.load(Relaxed)) + idle;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

impl Carrying<'_> {
    /// Between an app's socket and a tunnel.
    pub(super) async fn in_tunnel(self, app: &UdpSocket, tunnel: Tunnel) -> Result<(), Failed> {
        let Self {
            queue,
            waiting,
            live,
            metrics,
            idle,
        } = self;
        let last = Last::new();
        let (mut reader, mut writer) = tunnel.split();
        let ended = {
            let mut there = pin!(send(&mut writer, queue, waiting, live, metrics, &last));
            let mut back = pin!(receive(&mut reader, app, live, metrics, &last));
            let mut heard = pin!(listen(app, queue, metrics));
            tokio::select! {
                done = &mut there => done,
                done = &mut back => done,
                done = &mut heard => done,
                () = last.idle(idle) => Ok(()),
                denied = live.denied() => Err(denied.into()),
            }
        };
        if ended.is_ok() && writer.shutdown().is_ok() {
            // An end of both sides is no reset of one.
            let rest = async { while let Some(Ok(_)) = reader.recv().await {} };
            let _ = timeout(LAST_WORDS, rest).await;
        }
        ended
    }

    /// Between an app's socket and another, which leads to where it goes.
    pub(super) async fn between(self, app: &UdpSocket, other: &UdpSocket) -> Result<(), Failed> {
        let Self {
            queue,
            waiting,
            live,
            metrics,
            idle,
        } = self;
        let last = Last::new();
        let there = async {
            loop {
                let payload = queue.pop(waiting).await;
                last.moved();
                if delivered(other.send(&payload).await, metrics) {
                    count(live, metrics, Moved::Sent, payload.len());
                }
            }
        };
        let back = async {
            loop {
                match hear(other).await {
                    Ok(payload) => {
                        last.moved();
                        if delivered(app.send(&payload).await, metrics) {
                            count(live, metrics, Moved::Received, payload.len());
                        }
                    }
                    Err(error) => heard_wrong(error, metrics)?,
                }
            }
        };
        tokio::select! {
            () = there => Ok(()),
            done = back => done,
            done = listen(app, queue, metrics) => done,
            () = last.idle(idle) => Ok(()),
            denied = live.denied() => Err(denied.into()),
        }
    }

    /// To an app's socket alone; its answers go another way.
    pub(super) async fn to(self, app: &UdpSocket) -> Result<(), Failed> {
        let Self {
            queue,
            waiting,
            live,
            metrics,
            idle,
        } = self;
        let last = Last::new();
        let there = async {
            loop {
                let payload = queue.pop(waiting).await;
                last.moved();
                if delivered(app.send(&payload).await, metrics) {
                    count(live, metrics, Moved::Received, payload.len());
                }
            }
        };
        tokio::select! {
            () = there => Ok(()),
            () = last.idle(idle) => Ok(()),
            denied = live.denied() => Err(denied.into()),
        }
    }
}

/// What the app says goes into the queue. Ends only with an error.
async fn listen(app: &UdpSocket, queue: &Queue, metrics: &UdpMetrics) -> Result<(), Failed> {
    loop {
        match hear(app).await {
            Ok(payload) => {
                if !queue.push(payload) {
                    metrics.lost(Lost::Queue);
                }
            }
            Err(error) => heard_wrong(error, metrics)?,
        }
    }
}

async fn send(
    writer: &mut Writer,
    queue: &Queue,
    waiting: &mut mpsc::Receiver<Bytes>,
    live: &Live,
    metrics: &UdpMetrics,
    last: &Last,
) -> Result<(), Failed> {
    loop {
        let payload = queue.pop(waiting).await;
        last.moved();
        writer.send(capsule(&payload)).await?;
        count(live, metrics, Moved::Sent, payload.len());
    }
}

/// Ends when the other end does.
async fn receive(
    reader: &mut Reader,
    app: &UdpSocket,
    live: &Live,
    metrics: &UdpMetrics,
    last: &Last,
) -> Result<(), Failed> {
    let mut capsules = Capsules::default();
    while let Some(chunk) = reader.recv().await {
        let mut chunk = chunk?;
        while let Some(payload) = capsules.next(&mut chunk)? {
            last.moved();
            if delivered(app.send(&payload).await, metrics) {
                count(live, metrics, Moved::Received, payload.len());
            }
        }
    }
    Ok(())
}

fn count(live: &Live, metrics: &UdpMetrics, moved: Moved, n: usize) {
    let counters = live.counters();
    match moved {
        Moved::Sent => counters.sent.fetch_add(n as u64, Relaxed),
        Moved::Received => counters.received.fetch_add(n as u64, Relaxed),
    };
    metrics.moved(moved);
}

/// Whether the kernel took it. What it does not take is lost, as it would be on the wire.
fn delivered(sent: io::Result<usize>, metrics: &UdpMetrics) -> bool {
    let Err(error) = sent else { return true };
    metrics.lost(match error.raw_os_error() {
        Some(libc::EMSGSIZE) => Lost::TooLarge,
        // Said of a datagram before this one.
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH) => Lost::Closed,
        _ => Lost::Kernel,
    });
    false
}

/// What a socket says of datagrams that went before does not end a flow: the app may listen again.
fn heard_wrong(error: io::Error, metrics: &UdpMetrics) -> Result<(), Failed> {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE) => {
            metrics.lost(Lost::Closed);
            Ok(())
        }
        _ => Err(Failed::Socket(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_drops_the_newest_by_number_or_by_bytes_and_takes_more_when_there_is_room()
    {
        let (queue, mut waiting) = Queue::new(Arc::default());
        for n in 0..WAITING {
            assert!(queue.push(Bytes::from(vec![n as u8])));
        }
        assert!(!queue.push(Bytes::from_static(b"newest")));
        assert_eq!(queue.pop(&mut waiting).await, [0][..]);
        assert!(queue.push(Bytes::from_static(b"next")));

        let (queue, mut waiting) = Queue::new(Arc::default());
        let large = Bytes::from(vec![0; 65_000]);
        let taken = |queue: &Queue| {
            let pushed = (0..WAITING).take_while(|_| queue.push(large.clone()));
            pushed.count()
        };
        assert_eq!(taken(&queue), BYTES / 65_000);
        assert!(queue.push(Bytes::from_static(b"small")));
        queue.pop(&mut waiting).await;
        assert!(queue.push(large.clone()));

        let of_pod = Arc::<AtomicUsize>::default();
        let mut all: Vec<_> = (0..40).map(|_| Queue::new(of_pod.clone())).collect();
        let of_all: usize = all.iter().map(|(queue, _)| taken(queue)).sum();
        assert_eq!(of_all, BYTES_OF_POD / 65_000);
        all.pop();
        all.remove(0);
        assert!(all[0].0.push(Bytes::from_static(b"small")));
        assert!(
            all.iter().map(|(queue, _)| taken(queue)).sum::<usize>() >= 8,
            "room came back"
        );
        drop(all);
        assert_eq!(of_pod.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_flow_is_not_idle_before_nothing_has_moved_for_so_long() {
        let (last, begun) = (Last::new(), Instant::now());
        let moving = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            last.moved();
        };
        tokio::join!(last.idle(Duration::from_millis(200)), moving);
        let after = begun.elapsed();
        assert!(after >= Duration::from_millis(299), "{after:?}");
    }
}
