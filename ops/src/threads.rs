//! Threads that carry traffic: each with a runtime to itself, and which of them has least to do.
//!
//! 1. they start, and run until they are ended                      ([`Threads`])
//! 2. connections and tunnels of each are counted                   ([`Places`])
//! 3. what begins gets a place, and holds it as long as it lasts    ([`Place`])
//!
//! A place is given once. What has one stays there, so that nothing of it waits for another thread or takes turns with one.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, RuntimeMetrics};
use tokio_util::sync::CancellationToken;

/// How many connections and tunnels more than the least busy thread one may have before it gives new ones away.
const AHEAD: usize = 2;
/// For work that does not end by itself when it is dropped (blocking look-ups).
const SHUTDOWN: Duration = Duration::from_secs(1);

thread_local! {
    /// Which of the threads this is. Others (tests, the control thread) use what the first one has.
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The number of the thread that runs this.
pub fn here() -> usize {
    HERE.get()
}

/// What a process makes of its threads.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Their name, to which the number of each is added.
    pub name: &'static str,
    /// Tasks that run before a thread asks which sockets have become ready.
    pub events: u32,
    /// What each does first, where its runtime runs.
    pub begin: fn(),
}

/// Those that run.
#[derive(Debug)]
pub struct Threads {
    runtimes: Vec<Handle>,
    joins: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Threads {
    /// Starts `count` threads, at least one, which run until [`Threads::end`].
    ///
    /// # Errors
    /// When the system gives no thread or no epoll descriptor.
    pub fn start(count: usize, kind: Kind) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut threads = Self {
            runtimes: Vec::new(),
            joins: Vec::new(),
            stop: stop.clone(),
        };
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .event_interval(kind.events)
                .enable_all()
                .build()?;
            threads.runtimes.push(runtime.handle().clone());
            let stop = stop.clone();
            let thread = std::thread::Builder::new().name(format!("{}-{index}", kind.name));
            threads.joins.push(thread.spawn(move || {
                HERE.set(index);
                runtime.block_on(async {
                    (kind.begin)();
                    stop.cancelled().await;
                });
                runtime.shutdown_timeout(SHUTDOWN);
            })?);
        }
        Ok(threads)
    }

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

/// What each thread carries.
#[derive(Debug)]
pub struct Places(Box<[Thread]>);

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    /// Connections and tunnels that it carries.
    load: Arc<AtomicUsize>,
}

impl Places {
    /// On these runtimes: those of [`Threads`], in their order, or others; at least one.
    pub fn on(runtimes: &[Handle]) -> Self {
        let thread = |runtime: &Handle| Thread {
            runtime: runtime.clone(),
            load: Arc::default(),
        };
        Self(runtimes.iter().map(thread).collect())
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The runtime of one of them.
    pub fn runtime(&self, at: usize) -> &Handle {
        &self.0[at].runtime
    }

    /// Figures of each runtime.
    pub fn metrics(&self) -> Vec<RuntimeMetrics> {
        self.0.iter().map(|it| it.runtime.metrics()).collect()
    }

    /// Which of them runs this.
    pub fn mine(&self) -> usize {
        // A thread of another set may be beyond ours: tests have several.
        here() % self.0.len()
    }

    /// A place where there is least to do.
    pub fn anywhere(&self) -> Place {
        self.at(self.least())
    }

    /// A place on this thread, unless others have less to do.
    pub fn near(&self, thread: usize) -> Place {
        let least = self.least();
        let is_ahead = self.load(thread) > self.load(least) + AHEAD;
        self.at(if is_ahead { least } else { thread })
    }

    /// A place beside what runs this, unless others have less to do.
    pub fn beside(&self) -> Place {
        self.near(self.mine())
    }

    /// One thing more on the thread that runs this.
    pub fn stay(&self) -> Load {
        self.more(self.mine())
    }

    /// The first of those that have least to do.
    fn least(&self) -> usize {
        let all = 0..self.0.len();
        all.min_by_key(|at| self.load(*at)).unwrap_or_default()
    }

    fn load(&self, at: usize) -> usize {
        self.0[at].load.load(Relaxed)
    }

    fn at(&self, at: usize) -> Place {
        Place {
            thread: at,
            runtime: self.0[at].runtime.clone(),
            load: self.more(at),
        }
    }

    fn more(&self, at: usize) -> Load {
        let load = &self.0[at].load;
        load.fetch_add(1, Relaxed);
        Load(load.clone())
    }
}

/// A place on one of the threads, for as long as it is held.
#[derive(Debug)]
pub struct Place {
    thread: usize,
    runtime: Handle,
    load: Load,
}

/// One thing more that a thread carries, until it is dropped.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Place {
    /// On which of them it is.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// That thread's runtime.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// A socket that the thread that runs this has accepted, as one of the thread that it is to go on at.
    ///
    /// # Errors
    /// When it cannot be watched there.
    pub fn adopt(&self, tcp: TcpStream) -> io::Result<TcpStream> {
        if self.thread == here() {
            return Ok(tcp);
        }
        let tcp = tcp.into_std()?;
        let _there = self.runtime.enter();
        TcpStream::from_std(tcp)
    }

    /// The runtime, and what holds the place there: the smaller of the two is all that needs to be kept.
    pub fn held(self) -> (Handle, Load) {
        (self.runtime, self.load)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const TRAFFIC: Kind = Kind {
        name: "traffic",
        events: 16,
        begin: || (),
    };
    /// No thread needs as long.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn connections_go_where_least_is_done_and_tunnels_stay_until_others_have_less() {
        let threads = Threads::start(2, TRAFFIC).unwrap();
        let places = Places::on(threads.runtimes());
        let loads = || [0, 1].map(|at| places.load(at));
        let _first = places.anywhere();
        let second = places.anywhere();
        assert_eq!(loads(), [1, 1]);
        drop(second);
        // This thread counts as the first.
        let tunnels: Vec<_> = (0..7).map(|_| places.beside()).collect();
        assert_eq!(loads(), [5, 3]);
        drop(tunnels);
        assert_eq!(loads(), [1, 0]);
        let (_, held) = places.near(1).held();
        assert_eq!(loads(), [1, 1], "the place is kept without its runtime");
        drop(held);
        assert_eq!(loads(), [1, 0]);
        threads.end();
    }

    #[test]
    fn each_begins_as_it_is_told_with_its_runtime_and_knows_its_number() {
        thread_local!(static BEGUN: Cell<bool> = const { Cell::new(false) });
        let begin = || BEGUN.set(Handle::try_current().is_ok());
        let kind = Kind { begin, ..TRAFFIC };
        let threads = Threads::start(2, kind).unwrap();
        for (index, runtime) in threads.runtimes().iter().enumerate() {
            let (said, heard) = mpsc::channel();
            runtime.spawn(async move {
                let name = std::thread::current().name().map(str::to_owned);
                said.send((name, here(), BEGUN.get())).unwrap();
            });
            let name = Some(format!("traffic-{index}"));
            let told = heard.recv_timeout(PATIENCE).unwrap();
            assert_eq!(told, (name, index, true));
        }
        threads.end();
    }

    #[test]
    fn a_socket_goes_on_at_the_thread_that_adopts_it_when_the_one_that_accepted_it_has_ended() {
        let (accepting, carrying) = (Threads::start(1, TRAFFIC), Threads::start(2, TRAFFIC));
        let (accepting, carrying) = (accepting.unwrap(), carrying.unwrap());
        let place = Places::on(carrying.runtimes()).near(1);
        let (said, heard) = mpsc::channel();
        accepting.runtimes()[0].spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap());
            let (tcp, _) = listener.accept().await.unwrap();
            let tcp = place.adopt(tcp).unwrap();
            said.send((client.unwrap(), tcp, place)).unwrap();
        });
        let (mut client, mut tcp, place) = heard.recv_timeout(PATIENCE).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        accepting.end();
        place.runtime().spawn(async move {
            let mut word = [0; 5];
            tcp.read_exact(&mut word).await?;
            tcp.write_all(&word).await
        });
        io::Write::write_all(&mut client, b"hello").unwrap();
        let mut word = [0; 5];
        io::Read::read_exact(&mut client, &mut word).unwrap();
        assert_eq!(&word, b"hello");
        carrying.end();
    }
}
