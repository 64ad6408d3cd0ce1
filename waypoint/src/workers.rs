//! Threads that carry traffic: each with a runtime to itself, and connections to endpoints of its own.
//!
//! A client's connection is placed once, on the thread that has least to do. What arrives on it stays there, so that nothing
//! of a request waits for another thread or takes turns with one; what is more than the others have is given to the least
//! busy of them: a client that has one connection has all of us.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, RuntimeMetrics};
use tokio_util::sync::CancellationToken;

/// How many connections and tunnels more than the least busy thread one may have before it gives new ones away.
const AHEAD: usize = 2;
/// Tasks that run before a thread asks which sockets have become ready.
const EVENTS: u32 = 16;
/// For work that does not end by itself when it is dropped (blocking look-ups).
const SHUTDOWN: Duration = Duration::from_secs(1);

thread_local! {
    /// Which of the threads this is. Others (tests, the control thread) use what the first one has.
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The number of the thread that runs this.
pub(crate) fn here() -> usize {
    HERE.get()
}

/// A socket that was accepted elsewhere, as one of the thread that runs this.
pub(crate) fn adopt(tcp: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(tcp.into_std()?)
}

/// All of them.
#[derive(Debug)]
pub struct Workers(Box<[Worker]>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Connections and tunnels that it carries.
    load: Arc<AtomicUsize>,
}

/// A connection's or tunnel's place, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Place {
    runtime: Handle,
    load: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Relaxed);
    }
}

impl Place {
    /// Where it is.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Workers {
    /// Starts `count` threads, which run until [`Threads::end`].
    ///
    /// # Errors
    /// When the system gives no thread or no epoll descriptor.
    pub fn start(count: usize) -> io::Result<Threads> {
        let stop = CancellationToken::new();
        let mut threads = Threads {
            runtimes: Vec::new(),
            joins: Vec::new(),
            stop: stop.clone(),
        };
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .event_interval(EVENTS)
                .enable_all()
                .build()?;
            threads.runtimes.push(runtime.handle().clone());
            let stop = stop.clone();
            let thread = std::thread::Builder::new().name(format!("traffic-{index}"));
            threads.joins.push(thread.spawn(move || {
                HERE.set(index);
                runtime.block_on(async {
                    // What the streams of a tunnel write in one turn of this thread leaves together.
                    hbone::write_by_turns();
                    stop.cancelled().await;
                });
                runtime.shutdown_timeout(SHUTDOWN);
            })?);
        }
        Ok(threads)
    }

    /// On these runtimes.
    pub fn on(runtimes: &[Handle]) -> Self {
        let worker = |runtime: &Handle| Worker {
            runtime: runtime.clone(),
            load: Arc::default(),
        };
        Self(runtimes.iter().map(worker).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A place for a connection: where there is least to do.
    pub(crate) fn anywhere(&self) -> Place {
        let least = self.0.iter().min_by_key(|worker| worker.load.load(Relaxed));
        Self::at(least.unwrap_or_else(|| self.mine()))
    }

    /// A place for what came on a connection of this thread: here, unless others have less to do.
    pub(crate) fn beside(&self) -> Place {
        let load = |worker: &Worker| worker.load.load(Relaxed);
        let (mine, least) = (self.mine(), self.0.iter().min_by_key(|it| load(it)));
        Self::at(match least {
            Some(least) if load(mine) > load(least) + AHEAD => least,
            _ => mine,
        })
    }

    /// Figures of each runtime.
    pub fn metrics(&self) -> Vec<RuntimeMetrics> {
        self.0.iter().map(|it| it.runtime.metrics()).collect()
    }

    fn mine(&self) -> &Worker {
        // A thread of another set of workers may be beyond ours: tests have several.
        &self.0[here() % self.0.len()]
    }

    fn at(worker: &Worker) -> Place {
        worker.load.fetch_add(1, Relaxed);
        Place {
            runtime: worker.runtime.clone(),
            load: worker.load.clone(),
        }
    }
}

/// The threads behind [`Workers`].
#[derive(Debug)]
pub struct Threads {
    runtimes: Vec<Handle>,
    joins: Vec<std::thread::JoinHandle<()>>,
    stop: CancellationToken,
}

impl Threads {
    /// Their runtimes; at least one.
    pub fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// Ends them; what they still run is dropped.
    pub fn end(self) {
        self.stop.cancel();
        for thread in self.joins {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_least_is_done_and_tunnels_stay_until_others_have_less() {
        let threads = Workers::start(2).unwrap();
        let workers = Workers::on(threads.runtimes());
        let loads = || [0, 1].map(|at: usize| workers.0[at].load.load(Relaxed));
        let _first = workers.anywhere();
        let second = workers.anywhere();
        assert_eq!(loads(), [1, 1]);
        drop(second);
        // This thread counts as the first.
        let tunnels: Vec<_> = (0..7).map(|_| workers.beside()).collect();
        assert_eq!(loads(), [5, 3]);
        drop(tunnels);
        assert_eq!(loads(), [1, 0]);
        threads.end();
    }
}
