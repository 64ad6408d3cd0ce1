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
use hbone::datagrams::{Capsules, capsule, closed};
use hbone::{Reader, Tunnel, Writer};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use super::Failed;
use super::metrics::{Lost, Moved, UdpMetrics};
use super::socket::hear;
use super::unreachable::Teller;
use crate::connections::Live;
use crate::netns::Netns;

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
    /// Where the app is.
    pub(super) netns: &'a Netns,
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
            netns,
            idle,
        } = self;
        let (last, nobody) = (Last::new(), Notify::new());
        let (mut reader, mut writer) = tunnel.split();
        let ended = {
            let sending = Sending {
                queue,
                waiting,
                nobody: &nobody,
            };
            let mut there = pin!(sending.run(&mut writer, live, metrics, &last));
            let receiving = Receiving {
                app,
                teller: Teller::new(netns, app),
                nobody: &nobody,
            };
            let mut back = pin!(receiving.run(&mut reader, live, metrics, &last));
            let mut heard = pin!(listen(app, queue, metrics, Some(&nobody)));
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
            netns,
            idle,
        } = self;
        let (last, nobody) = (Last::new(), Notify::new());
        let there = async {
            loop {
                let payload = queue.pop(waiting).await;
                last.moved();
                match delivered(other.send(&payload).await, metrics) {
                    Delivered::Taken => count(live, metrics, Moved::Sent, payload.len()),
                    Delivered::Closed => nobody.notify_one(),
                    Delivered::Lost => {}
                }
            }
        };
        let back = async {
            loop {
                match hear(other).await {
                    Ok(payload) => {
                        last.moved();
                        if let Delivered::Taken = delivered(app.send(&payload).await, metrics) {
                            count(live, metrics, Moved::Received, payload.len());
                        }
                    }
                    Err(error) => heard_wrong(error, metrics, Some(&nobody))?,
                }
            }
        };
        let tell = async {
            let mut teller = Teller::new(netns, app);
            loop {
                nobody.notified().await;
                teller.tell();
            }
        };
        tokio::select! {
            () = there => Ok(()),
            done = back => done,
            () = tell => Ok(()),
            done = listen(app, queue, metrics, None) => done,
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
            netns: _, // who sent hears from the app's kernel itself
        } = self;
        let last = Last::new();
        let there = async {
            loop {
                let payload = queue.pop(waiting).await;
                last.moved();
                if let Delivered::Taken = delivered(app.send(&payload).await, metrics) {
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

/// What the app says goes into the queue; that it does not listen any more, to whoever waits for that. Ends only with an error.
async fn listen(
    app: &UdpSocket,
    queue: &Queue,
    metrics: &UdpMetrics,
    nobody: Option<&Notify>,
) -> Result<(), Failed> {
    loop {
        match hear(app).await {
            Ok(payload) => {
                if !queue.push(payload) {
                    metrics.lost(Lost::Queue);
                }
            }
            Err(error) => heard_wrong(error, metrics, nobody)?,
        }
    }
}

/// Into a tunnel.
struct Sending<'a> {
    queue: &'a Queue,
    waiting: &'a mut mpsc::Receiver<Bytes>,
    /// Nobody listens at this end.
    nobody: &'a Notify,
}

impl Sending<'_> {
    async fn run(
        self,
        writer: &mut Writer,
        live: &Live,
        metrics: &UdpMetrics,
        last: &Last,
    ) -> Result<(), Failed> {
        loop {
            tokio::select! {
                payload = self.queue.pop(self.waiting) => {
                    last.moved();
                    writer.send(capsule(&payload)).await?;
                    count(live, metrics, Moved::Sent, payload.len());
                }
                () = self.nobody.notified() => {
                    writer.send(closed()).await?;
                }
            }
        }
    }
}

/// Out of a tunnel.
struct Receiving<'a> {
    app: &'a UdpSocket,
    /// Of nobody at the other end.
    teller: Teller<'a>,
    /// Nobody listens at this end.
    nobody: &'a Notify,
}

impl Receiving<'_> {
    /// Ends when the other end does.
    async fn run(
        mut self,
        reader: &mut Reader,
        live: &Live,
        metrics: &UdpMetrics,
        last: &Last,
    ) -> Result<(), Failed> {
        let mut capsules = Capsules::default();
        while let Some(chunk) = reader.recv().await {
            let mut chunk = chunk?;
            while let Some(payload) = capsules.next(&mut chunk)? {
                last.moved();
                match delivered(self.app.send(&payload).await, metrics) {
                    Delivered::Taken => count(live, metrics, Moved::Received, payload.len()),
                    Delivered::Closed => self.nobody.notify_one(),
                    Delivered::Lost => {}
                }
            }
            if capsules.heard_closed() {
                self.teller.tell();
            }
        }
        Ok(())
    }
}

fn count(live: &Live, metrics: &UdpMetrics, moved: Moved, n: usize) {
    let counters = live.counters();
    match moved {
        Moved::Sent => counters.sent.fetch_add(n as u64, Relaxed),
        Moved::Received => counters.received.fetch_add(n as u64, Relaxed),
    };
    metrics.moved(moved);
}

/// What the kernel did with a datagram. What it does not take is lost, as it would be on the wire.
enum Delivered {
    Taken,
    /// Nobody listens there; it was said of one before.
    Closed,
    Lost,
}

fn delivered(sent: io::Result<usize>, metrics: &UdpMetrics) -> Delivered {
    let Err(error) = sent else {
        return Delivered::Taken;
    };
    let (why, delivered) = match error.raw_os_error() {
        Some(libc::EMSGSIZE) => (Lost::TooLarge, Delivered::Lost),
        Some(libc::ECONNREFUSED) => (Lost::Closed, Delivered::Closed),
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => (Lost::Closed, Delivered::Lost),
        _ => (Lost::Kernel, Delivered::Lost),
    };
    metrics.lost(why);
    delivered
}

/// What a socket says of datagrams that went before does not end a flow: the app may listen again.
fn heard_wrong(
    error: io::Error,
    metrics: &UdpMetrics,
    nobody: Option<&Notify>,
) -> Result<(), Failed> {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE) => {
            metrics.lost(Lost::Closed);
        }
        _ => return Err(Failed::Socket(error)),
    }
    if error.raw_os_error() == Some(libc::ECONNREFUSED)
        && let Some(nobody) = nobody
    {
        nobody.notify_one();
    }
    Ok(())
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
            tokio::time::sleep(Duration::from_millis(500)).await;
            last.moved();
        };
        // In this order: on a machine that is late by all the rest it would else end before anything has moved.
        tokio::join!(biased; moving, last.idle(Duration::from_secs(2)));
        let after = begun.elapsed();
        assert!(after >= Duration::from_millis(2499), "{after:?}");
    }
}
