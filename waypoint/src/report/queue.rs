//! What waits to be handed to a collector: bounded, and what does not fit is counted.
//!
//! 1. compiled telemetry names a collector                                   ([`Collectors::of`])
//! 2. a request that ends puts what is told of it into that one's queue      ([`Queue::put`], never waits)
//! 3. whoever sends takes the other end, one for each collector              ([`Openings`], `send`)
//!
//! A queue lives as long as some compiled telemetry names it; what is in it then is still sent. One that nobody has taken
//! before its collector became another is given up, and what it held is counted: so there wait no more queues than the
//! mesh has collectors, however often it is told of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use api::otlp;
use tokio::sync::{Notify, mpsc};

use super::collector::Collector;

/// What is told of one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// To a collector of traces.
    Span(Box<otlp::Span>),
    /// To a collector of logs.
    Line(Box<otlp::LogRecord>),
}

/// The way in.
#[derive(Debug)]
pub struct Queue {
    records: mpsc::Sender<Record>,
    counts: Arc<Counts>,
}

impl Queue {
    /// One more; dropped and counted if there are too many.
    pub fn put(&self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// What became of a collector's records.
#[derive(Debug, Default)]
pub struct Counts {
    /// It has them.
    pub sent: AtomicU64,
    /// There was no room.
    pub dropped: AtomicU64,
    /// It could not be reached, or did not want them.
    pub failed: AtomicU64,
}

/// The way out of a new queue.
#[derive(Debug)]
pub struct Opened {
    /// The collector.
    pub to: Arc<Collector>,
    /// What is told.
    pub records: mpsc::Receiver<Record>,
    /// What becomes of it.
    pub counts: Arc<Counts>,
}

/// All queues of the process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Collectors(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    /// Something was opened.
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    open: HashMap<Arc<str>, (Arc<Collector>, Weak<Queue>)>,
    counts: BTreeMap<Arc<str>, Arc<Counts>>,
    /// Not taken yet, oldest first, at most one of each collector; none: nobody sends.
    opened: Option<VecDeque<Opened>>,
}

impl Known {
    fn opened(&mut self, new: Opened) {
        let Some(opened) = &mut self.opened else {
            return;
        };
        opened.retain_mut(|old| {
            let stays = old.to.key != new.to.key;
            if !stays {
                old.give_up();
            }
            stays
        });
        opened.push_back(new);
    }
}

impl Opened {
    fn give_up(&mut self) {
        self.records.close();
        let held = std::iter::from_fn(|| self.records.try_recv().ok()).count();
        self.counts.dropped.fetch_add(held as u64, Relaxed);
    }
}

/// New queues, for whoever sends.
#[derive(Debug)]
pub struct Openings(Collectors);

impl Openings {
    /// The next new one, when there is one.
    pub async fn next(&mut self) -> Opened {
        loop {
            if let Some(opened) = self.already() {
                return opened;
            }
            // What is opened in between has left a permit here.
            self.0.0.news.notified().await;
        }
    }

    /// The next one, if there is one.
    pub fn already(&mut self) -> Option<Opened> {
        self.0.known().opened.as_mut()?.pop_front()
    }
}

impl Drop for Openings {
    fn drop(&mut self) {
        let opened = self.0.known().opened.take();
        for mut opened in opened.into_iter().flatten() {
            opened.give_up();
        }
    }
}

impl Collectors {
    /// None yet. Who sends hears of each new one.
    pub fn new() -> (Self, Openings) {
        let collectors = Self::default();
        collectors.known().opened = Some(VecDeque::new());
        (collectors.clone(), Openings(collectors))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue of a collector; a new one if it is another than it was.
    pub fn of(&self, collector: Collector) -> Arc<Queue> {
        let mut known = self.known();
        if let Some((held, queue)) = known.open.get(&collector.key)
            && **held == collector
            && let Some(queue) = queue.upgrade()
        {
            return queue;
        }
        known.open.retain(|_, (_, queue)| queue.strong_count() > 0);
        let counts = known.counts.entry(collector.key.clone()).or_default();
        let (counts, to) = (counts.clone(), Arc::new(collector));
        let (sender, records) = mpsc::channel(ROOM);
        let queue = Arc::new(Queue {
            records: sender,
            counts: counts.clone(),
        });
        let weak = Arc::downgrade(&queue);
        known.open.insert(to.key.clone(), (to.clone(), weak));
        known.opened(Opened {
            to,
            records,
            counts,
        });
        self.0.news.notify_one();
        queue
    }

    /// What became of each one's records.
    pub fn counts(&self) -> Vec<(Arc<str>, Arc<Counts>)> {
        let known = self.known();
        let counts = known.counts.iter();
        counts
            .map(|(key, counts)| (key.clone(), counts.clone()))
            .collect()
    }
}

/// Records that wait. One takes about three kilobytes, and at most some sixteen.
const ROOM: usize = 2_048;
