//! The log's way to stdout. Lines enter from any thread; one writer thread carries them out.
//!
//! 1. a line is copied behind the others in one shared buffer   ([`Sink::put`], never blocks)
//! 2. the writer lets a moment's lines gather, swaps that buffer for its empty one and writes (`Sink::carry`, may block for
//!    ever): a line by itself would cost a wake-up and a write
//! 3. what did not fit is counted and said in the log itself once there is room again
//!
//! A proxy whose stdout nobody reads must go on carrying traffic: a full pipe costs log lines, not
//! connections. Price: up to twice the buffer in memory, and the last lines are lost when the
//! process is killed hard.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing_subscriber::fmt::MakeWriter;

use crate::time::Micros;

/// A bounded, lossy queue of log lines in front of a writer that may block.
#[derive(Clone, Debug)]
pub struct Sink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    news: Condvar,
    drained: Condvar,
    capacity: usize,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines lost since the log last said so.
    lost: u64,
    /// The writer thread holds lines that are not out yet.
    writing: bool,
    /// Somebody waits for all of it to be out.
    hurry: bool,
}

impl Sink {
    /// A sink of `capacity` bytes in front of `out`, with its own writer thread.
    pub fn new(out: impl Write + Send + 'static, capacity: usize) -> io::Result<Self> {
        let sink = Self(Arc::new(Shared {
            waiting: Mutex::default(),
            news: Condvar::new(),
            drained: Condvar::new(),
            capacity,
            dropped: AtomicU64::new(0),
        }));
        let writer = sink.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.carry(out))?;
        Ok(sink)
    }

    /// Appends one line, or counts it as dropped if the buffer is full.
    pub fn put(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() + line.len() > self.0.capacity {
            waiting.lost += 1;
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = waiting.lines.len();
        if waiting.lost > 0 {
            let notice = lost_lines(waiting.lost);
            waiting.lines.extend_from_slice(notice.as_bytes());
            waiting.lost = 0;
        }
        waiting.lines.extend_from_slice(line);
        let (now, enough) = (waiting.lines.len(), self.enough());
        drop(waiting);
        // The writer sleeps on an empty buffer, or for a moment on one that is not full enough.
        if before == 0 || (before < enough && now >= enough) {
            self.0.news.notify_one();
        }
    }

    /// Lines dropped since the start, because stdout did not keep up.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything put so far is written, at most `limit`. Blocks the thread: for the
    /// end of a process. True if all is out.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut waiting = self.lock();
        waiting.hurry = true;
        self.0.news.notify_one();
        while waiting.writing || !waiting.lines.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            waiting = self
                .0
                .drained
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    fn carry(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut waiting = self.lock();
            waiting.writing = false;
            while waiting.lines.is_empty() {
                waiting.hurry = false;
                self.0.drained.notify_all();
                waiting = self
                    .0
                    .news
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let enough = self.enough();
            let (mut waiting, _) = self
                .0
                .news
                .wait_timeout_while(waiting, GATHER, |waiting| {
                    waiting.lines.len() < enough && !waiting.hurry
                })
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut waiting.lines, &mut batch);
            waiting.writing = true;
            drop(waiting);
            // A closed stdout is nobody's business but the log's: the process goes on.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
        }
    }

    /// So many bytes are written without waiting for more.
    fn enough(&self) -> usize {
        self.0.capacity / 8
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while the lock is held; a poisoned log would be a silent process.
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the first of some lines waits for others.
const GATHER: Duration = Duration::from_millis(5);

fn lost_lines(lost: u64) -> String {
    format!(
        "{}\twarn\tops::log\tlog lines dropped, stdout is not read fast enough\tdropped={lost}\n",
        Micros(SystemTime::now())
    )
}

/// One event on its way: `tracing-subscriber` formats it whole and writes it once.
#[derive(Debug)]
pub struct Line<'a>(&'a Sink);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Writes only while the test holds the other end open for it, like a pipe.
    struct Pipe {
        permits: mpsc::Receiver<()>,
        out: Arc<Mutex<Vec<u8>>>,
        reached: mpsc::Sender<()>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.reached.send(());
            let _ = self.permits.recv();
            self.out.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn full_stdout_drops_lines_counts_them_and_says_so_later() {
        let (permit, permits) = mpsc::channel();
        let (reached, blocked) = mpsc::channel();
        let out = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink::new(
            Pipe {
                permits,
                out: out.clone(),
                reached,
            },
            100,
        )
        .unwrap();

        const PATIENCE: Duration = Duration::from_secs(60);
        sink.put(b"first\n");
        blocked.recv_timeout(PATIENCE).unwrap(); // the writer is stuck in write(2) now
        for _ in 0..50 {
            sink.put(b"0123456789\n"); // nine fit
        }
        assert_eq!(sink.dropped(), 41);
        assert!(
            !sink.flush(Duration::from_millis(1)),
            "nothing can be out yet"
        );

        permit.send(()).unwrap();
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        blocked.recv_timeout(PATIENCE).unwrap();
        sink.flush(PATIENCE);
        sink.put(b"after\n");
        assert!(sink.flush(PATIENCE));

        let text = String::from_utf8(out.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("0123456789").count(), 9);
        assert!(text.contains("dropped=41"), "{text}");
        assert!(text.ends_with("after\n"), "{text}");
    }
}
