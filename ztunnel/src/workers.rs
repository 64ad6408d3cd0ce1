//! Threads that carry traffic: each with a runtime to itself, and tunnels of its own.
//!
//! A connection is placed once, when it is accepted, and never moves: its sockets, its tunnel and both copies are woken
//! and run on one thread ([`ops::threads`]). Most connections of a pod go where its listeners are, its home, and find their
//! tunnels there; what is more than its neighbours have goes to the least busy of them, over a tunnel of that thread's own: a
//! busy pair of pods has as many tunnels as threads carry it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hbone::{Pool, PoolStats};
use ops::threads::{Kind, Load, Place, Places, Threads};
use tokio::runtime::{Handle, RuntimeMetrics};

const DATA: Kind = Kind {
    name: "data",
    // One that has much to do looks at its sockets every half millisecond.
    events: 8,
    begin: || (),
};

/// All of them.
#[derive(Debug)]
pub struct Workers {
    places: Places,
    /// Of each thread.
    pools: Box<[Arc<Pool>]>,
    /// The same for datagrams: they do not wait for what goes in other tunnels, nor are they handed over with them.
    datagrams: Box<[Arc<Pool>]>,
    /// Homes given away, in turn.
    homes: AtomicUsize,
}

/// Which worker a pod's listeners are at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home(usize);

impl Workers {
    /// Starts `count` threads, which run until [`Threads::end`].
    ///
    /// # Errors
    /// When the system gives no thread or no epoll descriptor.
    pub fn start(count: usize) -> io::Result<Threads> {
        Threads::start(count, DATA)
    }

    /// Workers on these runtimes, each with the pool that `pool` makes for it.
    pub fn on(runtimes: &[Handle], mut pool: impl FnMut() -> Arc<Pool>) -> Self {
        Self {
            places: Places::on(runtimes),
            pools: runtimes.iter().map(|_| pool()).collect(),
            datagrams: runtimes.iter().map(|_| pool()).collect(),
            homes: AtomicUsize::new(0),
        }
    }

    /// The runtime that runs this as the only worker.
    pub fn here(pool: Arc<Pool>) -> Self {
        Self::on(&[Handle::current()], || pool.clone())
    }

    /// A home for one more pod.
    pub fn home(&self) -> Home {
        Home(self.homes.fetch_add(1, Relaxed) % self.places.count())
    }

    /// The runtime of a home.
    pub fn at(&self, home: Home) -> &Handle {
        self.places.runtime(home.0)
    }

    /// A place for one more connection of a pod with this home.
    pub(crate) fn place(&self, home: Home) -> Place {
        self.places.near(home.0)
    }

    /// A tunnel more on the worker that runs this.
    pub(crate) fn stay(&self) -> Load {
        self.places.stay()
    }

    /// The tunnels of the worker that runs this.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pools[self.places.mine()]
    }

    /// The tunnels for datagrams of the worker that runs this.
    pub(crate) fn datagrams(&self) -> &Arc<Pool> {
        &self.datagrams[self.places.mine()]
    }

    /// Every worker's tunnels.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter().chain(&self.datagrams)
    }

    /// Figures of all pools together.
    pub fn stats(&self) -> PoolStats {
        self.pools().map(|pool| pool.stats()).sum()
    }

    /// Figures of each runtime.
    pub fn metrics(&self) -> Vec<RuntimeMetrics> {
        self.places.metrics()
    }
}

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
        let at: Vec<_> = places.iter().map(Place::thread).collect();
        assert_eq!(at, [1, 1, 1, 0, 2, 1, 0, 2, 1], "three first, then in turn");
        drop(places);
        let place = workers.place(Home(1));
        assert_eq!(place.thread(), 1, "all has been given back");
        threads.end();
    }

    #[test]
    fn what_runs_on_a_worker_finds_the_tunnels_of_that_worker() {
        let threads = Workers::start(2).unwrap();
        let workers = Arc::new(workers(&threads));
        for index in [0, 1] {
            let (said, heard) = std::sync::mpsc::channel();
            let asking = workers.clone();
            workers.at(Home(index)).spawn(async move {
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
