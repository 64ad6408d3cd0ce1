//! Threads that carry traffic: each with a runtime to itself, and tunnels of its own.
//!
//! A connection is placed once, when it is accepted, and never moves: its sockets, its tunnel and both copies are woken
//! and run on one thread, so that nothing of it waits for another thread or takes turns with one. Most connections of a
//! pod go where its listeners are, its home, and find their tunnels there; what is more than its neighbours have goes to
//! the least busy of them, over a tunnel of that thread's own: a busy pair of pods has as many tunnels as threads
//! carry it.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hbone::{Pool, PoolStats};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, RuntimeMetrics};
use tokio_util::sync::CancellationToken;

/// How many connections more than the least busy worker a pod's home may have before it gives new ones away.
const AHEAD: usize = 2;

/// Tasks that run before a thread asks which sockets have become ready: one that has much to do takes up to half a millisecond.
const EVENTS: u32 = 8;

/// All of them.
#[derive(Debug)]
pub struct Workers {
    all: Box<[Worker]>,
    /// Homes given away, in turn.
    homes: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    pool: Arc<Pool>,
    /// Connections and tunnels that it carries.
    load: Arc<AtomicUsize>,
}

/// Which worker a pod's listeners are at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home(usize);

/// A connection's place on a worker, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Place {
    worker: usize,
    runtime: Handle,
    load: Load,
}

/// One connection or tunnel more, until it is dropped.
#[derive(Debug)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

thread_local! {
    /// Which worker this thread is. Others (tests, the control thread) use what the first one has.
    static HERE: Cell<usize> = const { Cell::new(0) };
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
            let thread = std::thread::Builder::new().name(format!("data-{index}"));
            threads.joins.push(thread.spawn(move || {
                HERE.set(index);
                runtime.block_on(stop.cancelled());
                runtime.shutdown_timeout(SHUTDOWN);
            })?);
        }
        Ok(threads)
    }

    /// Workers on these runtimes, each with the pool that `pool` makes for it.
    pub fn on(runtimes: &[Handle], mut pool: impl FnMut() -> Arc<Pool>) -> Self {
        let worker = |runtime: &Handle| Worker {
            runtime: runtime.clone(),
            pool: pool(),
            load: Arc::default(),
        };
        Self {
            all: runtimes.iter().map(worker).collect(),
            homes: AtomicUsize::new(0),
        }
    }

    /// The runtime that runs this as the only worker.
    pub fn here(pool: Arc<Pool>) -> Self {
        Self::on(&[Handle::current()], || pool.clone())
    }

    /// A home for one more pod.
    pub fn home(&self) -> Home {
        Home(self.homes.fetch_add(1, Relaxed) % self.all.len())
    }

    /// The runtime of a home.
    pub fn at(&self, home: Home) -> &Handle {
        &self.all[home.0].runtime
    }

    /// A place for one more connection of a pod with this home.
    pub(crate) fn place(&self, home: Home) -> Place {
        let load = |worker: usize| self.all[worker].load.load(Relaxed);
        let least = (0..self.all.len()).min_by_key(|worker| load(*worker));
        let worker = match least {
            Some(least) if load(home.0) > load(least) + AHEAD => least,
            _ => home.0,
        };
        Place {
            worker,
            runtime: self.all[worker].runtime.clone(),
            load: self.all[worker].more(),
        }
    }

    /// A tunnel more on the worker that runs this.
    pub(crate) fn stay(&self) -> Load {
        self.mine().more()
    }

    /// The tunnels of the worker that runs this.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.mine().pool
    }

    /// Every worker's tunnels.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.all.iter().map(|worker| &worker.pool)
    }

    /// Figures of all pools together.
    pub fn stats(&self) -> PoolStats {
        self.pools().map(|pool| pool.stats()).sum()
    }

    /// Figures of each runtime.
    pub fn metrics(&self) -> Vec<RuntimeMetrics> {
        self.all
            .iter()
            .map(|worker| worker.runtime.metrics())
            .collect()
    }

    fn mine(&self) -> &Worker {
        // A thread of another set of workers may be beyond ours: tests have several.
        &self.all[HERE.get() % self.all.len()]
    }
}

impl Worker {
    fn more(&self) -> Load {
        self.load.fetch_add(1, Relaxed);
        Load(self.load.clone())
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
    /// Their runtimes.
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

impl Place {
    /// The worker's runtime.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The socket, accepted at `home`, as one of this worker's.
    pub(crate) fn adopt(&self, home: Home, tcp: TcpStream) -> io::Result<TcpStream> {
        if self.worker == home.0 {
            return Ok(tcp);
        }
        let tcp = tcp.into_std()?;
        let _there = self.runtime.enter();
        TcpStream::from_std(tcp)
    }

    /// The worker's runtime, and what holds the place there.
    pub(crate) fn held(self) -> (Handle, Load) {
        (self.runtime, self.load)
    }
}

/// For work that does not end by itself when it is dropped (blocking look-ups).
const SHUTDOWN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use hbone::{Certificates, CertificatesConfig, Identity, PoolConfig, SignError, Signer};

    use super::*;

    struct Nobody;

    impl Signer for Nobody {
        async fn sign(&self, _: &Identity, _: String) -> Result<Vec<String>, SignError> {
            Err(SignError::Unavailable("this is a test".into()))
        }
    }

    fn workers(threads: &Threads) -> Workers {
        let _runtime = threads.runtimes()[0].enter();
        let certificates = Certificates::new(Nobody, CertificatesConfig::default());
        Workers::on(threads.runtimes(), || {
            Pool::new(certificates.clone(), PoolConfig::default())
        })
    }

    #[test]
    fn pods_are_at_home_in_turn_and_connections_stay_there_until_it_has_more_than_others() {
        let threads = Workers::start(3).unwrap();
        let workers = workers(&threads);
        let homes = [(); 4].map(|()| workers.home().0);
        assert_eq!(homes, [0, 1, 2, 0]);
        let places: Vec<_> = (0..9).map(|_| workers.place(Home(1))).collect();
        let at: Vec<_> = places.iter().map(|place| place.worker).collect();
        assert_eq!(at, [1, 1, 1, 0, 2, 1, 0, 2, 1], "three first, then in turn");
        drop(places);
        assert_eq!(workers.place(Home(1)).worker, 1, "all has been given back");
        threads.end();
    }

    #[test]
    fn what_runs_on_a_worker_finds_the_tunnels_of_that_worker() {
        let threads = Workers::start(2).unwrap();
        let workers = Arc::new(workers(&threads));
        for index in [0, 1] {
            let (said, heard) = std::sync::mpsc::channel();
            let asking = workers.clone();
            workers.all[index].runtime.spawn(async move {
                let ours = asking
                    .pools()
                    .position(|pool| Arc::ptr_eq(pool, asking.pool()));
                said.send(ours).unwrap();
            });
            assert_eq!(heard.recv().unwrap(), Some(index));
        }
        threads.end();
    }
}
