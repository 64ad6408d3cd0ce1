//! What waits to be handed to a collector: bounded, and what does not fit is counted.
//!
//! 1. compiled telemetry names a collector                                   ([`Collectors::of`])
//! 2. a request that ends puts what is told of it into that one's queue      ([`Queue::put`], never waits)
//! 3. whoever sends has the other end                                        ([`Opened`], `send`)
//!
//! A queue lives as long as some compiled telemetry names it; what is in it then is still sent.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use api::otlp;
use tokio::sync::mpsc;

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
pub struct Collectors(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    open: HashMap<Arc<str>, (Arc<Collector>, Weak<Queue>)>,
    counts: BTreeMap<Arc<str>, Arc<Counts>>,
    opened: Option<mpsc::UnboundedSender<Opened>>,
}

impl Collectors {
    /// None yet. Who sends hears of each new one; as many as the mesh's settings name.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Opened>) {
        let (opened, hear) = mpsc::unbounded_channel();
        let known = Known {
            opened: Some(opened),
            ..Known::default()
        };
        (Self(Arc::new(Mutex::new(known))), hear)
    }

    /// The queue of a collector; a new one if it is another than it was.
    pub fn of(&self, collector: Collector) -> Arc<Queue> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        if let Some(opened) = &known.opened {
            let _ = opened.send(Opened {
                to,
                records,
                counts,
            });
        }
        queue
    }

    /// What became of each one's records.
    pub fn counts(&self) -> Vec<(Arc<str>, Arc<Counts>)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = known.counts.iter();
        counts
            .map(|(key, counts)| (key.clone(), counts.clone()))
            .collect()
    }
}

/// Records that wait. One takes about three kilobytes, and at most some sixteen.
const ROOM: usize = 2_048;
