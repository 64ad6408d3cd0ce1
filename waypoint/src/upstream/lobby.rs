//! Where requests wait for a connection to one endpoint, if its service may have so many connections only, or so many who
//! wait (circuit breaking).
//!
//! 1. a connection is free, and nobody waits: it is taken
//! 2. else one more waits, if so many may                          (503, and the flag `UO`)
//! 3. in the order in which they came, until a connection is free, or until another may be made: within the service's
//!    limit, or because the endpoint has none
//!
//! An endpoint may always have one, whatever the limit of its service: else those who were sent to it would wait for
//! those who were sent elsewhere (so does Envoy, which has one for each of its threads).

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::Failed;
use crate::limit::{Gates, Permit};

/// Those who wait, and what they wait for.
#[derive(Debug)]
pub(super) struct Lobby {
    /// Whoever has it is next.
    turn: Semaphore,
    waiting: AtomicUsize,
    /// A connection may be free.
    freed: Notify,
    /// Connections, with those that are being made.
    made: AtomicUsize,
    /// How often none came into being, and why the last did not.
    failed: Mutex<(u64, Option<Arc<Failed>>)>,
}

/// What somebody has got who has waited.
pub(super) enum Admitted<'l, T> {
    /// A connection.
    Free(T),
    /// He may make one.
    Make(Making<'l>),
}

/// The right to make a connection.
pub(super) struct Making<'l> {
    lobby: &'l Lobby,
    ticket: Ticket,
    behind: Behind<'l>,
}

/// He waits, and those behind him do, as long as this is there.
pub(super) struct Behind<'l> {
    _pending: Permit,
    turn: Option<SemaphorePermit<'l>>,
}

/// A connection counts as long as this is there.
#[derive(Debug)]
pub(crate) struct Ticket {
    lobby: Arc<Lobby>,
    _place: Permit,
}

impl Default for Lobby {
    fn default() -> Self {
        Self {
            turn: Semaphore::new(1),
            waiting: AtomicUsize::default(),
            freed: Notify::new(),
            made: AtomicUsize::default(),
            failed: Mutex::default(),
        }
    }
}

impl Lobby {
    /// Waits for a connection that is free, or until one may be made. `free`: takes one.
    ///
    /// # Errors
    /// When as many wait as may, or nobody could be reached by those who waited before.
    pub(super) async fn admit<T>(
        self: &Arc<Self>,
        gates: &Gates,
        mut free: impl FnMut() -> Option<T>,
    ) -> Result<Admitted<'_, T>, Failed> {
        if self.waiting.load(SeqCst) == 0
            && let Some(found) = free()
        {
            return Ok(Admitted::Free(found));
        }
        let pending = gates.pending.enter().ok_or(Failed::Overflow)?;
        let _waits = Waits::of(&self.waiting);
        let before = self.failures();
        // Closed never: it lives as long as we do.
        let turn = self.turn.acquire().await.ok();
        let watch = gates.connections.watch();
        loop {
            // Whatever becomes free from here on is not missed.
            let (mut freed, mut left) = (pin!(self.freed.notified()), pin!(watch.left()));
            freed.as_mut().enable();
            left.as_mut().enable();
            if let Some(found) = free() {
                return Ok(Admitted::Free(found));
            }
            if let Some(why) = self.failed_since(before) {
                return Err(Failed::ForAll(why));
            }
            if let Some(ticket) = self.ticket(gates) {
                return Ok(Admitted::Make(Making {
                    lobby: self,
                    ticket,
                    behind: Behind {
                        _pending: pending,
                        turn,
                    },
                }));
            }
            tokio::select! {
                () = freed => {}
                () = left => {}
            }
        }
    }

    /// Whether there is one more than there may be, as where there might be more before.
    pub(super) fn has_too_many(&self, gates: &Gates) -> bool {
        let beyond = |most: u32| gates.connections.inside() > most;
        self.made.load(SeqCst) > 1 && gates.connections.limit().is_some_and(beyond)
    }

    /// Whether nobody waits, and there is no connection, wherever it may be.
    pub(super) fn is_left(&self) -> bool {
        self.made.load(SeqCst) == 0 && self.waiting.load(SeqCst) == 0
    }

    /// A connection may be free now.
    pub(super) fn freed(&self) {
        self.freed.notify_one();
    }

    /// By whoever has the turn.
    fn ticket(self: &Arc<Self>, gates: &Gates) -> Option<Ticket> {
        let none = || self.made.load(SeqCst) == 0;
        let room = gates.connections.room();
        let place = room.or_else(|| none().then(|| gates.connections.enter_beyond()))?;
        self.made.fetch_add(1, SeqCst);
        Some(Ticket {
            lobby: self.clone(),
            _place: place,
        })
    }

    fn failures(&self) -> u64 {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.0
    }

    /// Why none came into being, if somebody has tried since there were so many failures and there is none.
    fn failed_since(&self, before: u64) -> Option<Arc<Failed>> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (times, why) = &*failed;
        let none = *times != before && self.made.load(SeqCst) == 0;
        why.clone().filter(|_| none)
    }
}

impl<'l> Making<'l> {
    /// Lets the next one come forward: what is made is for this one alone.
    pub(super) fn alone(&mut self) {
        self.behind.turn = None;
    }

    /// It is there.
    pub(super) fn done(self) -> (Ticket, Behind<'l>) {
        (self.ticket, self.behind)
    }

    /// It is not. Whoever has waited meanwhile does not wait for the same again.
    pub(super) fn failed(self, why: Failed) -> Failed {
        let why = Arc::new(why);
        let (lobby, failed) = (self.lobby, &self.lobby.failed);
        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = (failed.0.wrapping_add(1), Some(why.clone()));
        drop(failed);
        drop(self.ticket);
        lobby.freed();
        Failed::ForAll(why)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The place in the gate goes after it, and that is told.
        self.lobby.made.fetch_sub(1, SeqCst);
    }
}

/// One who waits.
struct Waits<'l>(&'l AtomicUsize);

impl<'l> Waits<'l> {
    fn of(waiting: &'l AtomicUsize) -> Self {
        waiting.fetch_add(1, SeqCst);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api::waypoint as wire;
    use tokio::task::{JoinSet, yield_now};
    use tokio::time::timeout;

    use super::*;

    fn gates(connections: u32, pending: u32) -> Arc<Gates> {
        Arc::new(Gates::compile(Some(&wire::Limits {
            connections,
            pending,
            ..wire::Limits::default()
        })))
    }

    type Free = Arc<Mutex<Vec<Ticket>>>;

    fn take(free: &Free) -> Option<Ticket> {
        free.lock().unwrap().pop()
    }

    /// A connection: a free one, or one that is made at once.
    async fn one(lobby: &Arc<Lobby>, gates: &Gates, free: &Free) -> Result<Ticket, Failed> {
        let admitted = lobby.admit(gates, || take(free)).await?;
        Ok(match admitted {
            Admitted::Free(ticket) => ticket,
            Admitted::Make(making) => making.done().0,
        })
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        let done = timeout(Duration::from_secs(60), work).await;
        done.expect("somebody is told")
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_longest_is_next_and_nobody_goes_before_him() {
        let (lobby, gates, free) = (Arc::<Lobby>::default(), gates(1, 0), Free::default());
        let first = one(&lobby, &gates, &free).await.ok().unwrap();
        let order = Arc::<Mutex<Vec<u32>>>::default();
        let mut waiting = JoinSet::new();
        for number in 0..5 {
            let (lobby, gates) = (lobby.clone(), gates.clone());
            let (free, order) = (free.clone(), order.clone());
            waiting.spawn(async move {
                let ticket = one(&lobby, &gates, &free).await.ok().unwrap();
                order.lock().unwrap().push(number);
                yield_now().await;
                free.lock().unwrap().push(ticket);
                lobby.freed();
            });
            yield_now().await;
        }
        assert_eq!(gates.pending.inside(), 5);
        free.lock().unwrap().push(first);
        lobby.freed();
        soon(waiting.join_all()).await;
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!((gates.pending.inside(), gates.connections.inside()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_leaves_his_place_to_others() {
        let (lobby, gates, free) = (Arc::<Lobby>::default(), gates(1, 1), Free::default());
        let first = one(&lobby, &gates, &free).await.ok().unwrap();
        let moment = Duration::from_secs(1);
        for _ in 0..10 {
            let waits = timeout(moment, one(&lobby, &gates, &free)).await;
            assert!(waits.is_err(), "there is no room");
        }
        let waits = async { soon(one(&lobby, &gates, &free)).await.is_ok() };
        let other = async {
            let refused = one(&lobby, &gates, &free).await;
            assert!(matches!(refused, Err(Failed::Overflow)));
            // It ends, and a new one may be made.
            drop(first);
        };
        let (got, ()) = tokio::join!(waits, other);
        assert!(got);
        assert_eq!((gates.pending.inside(), gates.connections.inside()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn every_endpoint_may_have_one_and_more_only_within_the_limit() {
        let gates = gates(1, 0);
        let lobbies: [Arc<Lobby>; 3] = Default::default();
        let free = Free::default();
        let mut held = Vec::new();
        for lobby in &lobbies {
            held.push(soon(one(lobby, &gates, &free)).await.ok().unwrap());
        }
        assert_eq!(gates.connections.inside(), 3);
        let more = timeout(Duration::from_secs(1), one(&lobbies[0], &gates, &free));
        assert!(more.await.is_err(), "it has one");
        // What ends elsewhere makes room once there are fewer than the limit.
        let waits = async { soon(one(&lobbies[0], &gates, &free)).await.is_ok() };
        let ends = async {
            yield_now().await;
            while let Some(ticket) = held.pop() {
                if held.is_empty() {
                    break;
                }
                drop(ticket);
                yield_now().await;
                assert_eq!(gates.pending.inside(), 1, "{} are left", held.len());
            }
        };
        let (got, ()) = tokio::join!(waits, ends);
        assert!(got);
    }

    #[tokio::test(start_paused = true)]
    async fn more_room_is_told_to_those_who_wait() {
        let (lobby, gates, free) = (Arc::<Lobby>::default(), gates(1, 0), Free::default());
        let _first = one(&lobby, &gates, &free).await.ok().unwrap();
        let waits = async { soon(one(&lobby, &gates, &free)).await.is_ok() };
        let edited = async {
            yield_now().await;
            let more = wire::Limits {
                connections: 2,
                ..wire::Limits::default()
            };
            let _next = gates.succeeded_by(Some(&more));
        };
        let (got, ()) = tokio::join!(waits, edited);
        assert!(got);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_an_endpoint_that_is_silent_wait_as_long_as_one() {
        const SILENCE: Duration = Duration::from_secs(10);
        let (lobby, gates) = (Arc::<Lobby>::default(), gates(1, 0));
        let began = tokio::time::Instant::now();
        let ask = || async {
            let admitted = lobby.admit(&gates, || None::<()>).await?;
            let Admitted::Make(mut making) = admitted else {
                panic!("there is none");
            };
            making.alone();
            tokio::time::sleep(SILENCE).await;
            Err::<(), _>(making.failed(Failed::ConnectTimeout(SILENCE)))
        };
        let all = futures_util::future::join_all((0..20).map(|_| ask())).await;
        assert!(
            all.iter()
                .all(|it| matches!(it, Err(why) if why.is_connect()))
        );
        assert_eq!(began.elapsed(), SILENCE);
        assert_eq!((gates.pending.inside(), gates.connections.inside()), (0, 0));
        // Who comes later looks for himself.
        assert!(ask().await.is_err());
        assert_eq!(began.elapsed(), 2 * SILENCE);
    }

    #[tokio::test]
    async fn connections_that_many_threads_want_are_never_more_than_there_may_be() {
        const ASKERS: usize = 200;
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(4).enable_time().build().unwrap();
        let (lobby, gates, free) = (Arc::<Lobby>::default(), gates(3, 0), Free::default());
        let most = Arc::<AtomicUsize>::default();
        let tasks = (0..ASKERS).map(|number| {
            let (lobby, gates) = (lobby.clone(), gates.clone());
            let (free, most) = (free.clone(), most.clone());
            runtime.spawn(async move {
                for round in 0..20 {
                    let ticket = one(&lobby, &gates, &free).await.ok().unwrap();
                    most.fetch_max(gates.connections.inside() as usize, SeqCst);
                    yield_now().await;
                    // Some end, others are used again, and some of those who wait give up.
                    if (number + round) % 3 == 0 {
                        drop(ticket);
                    } else {
                        free.lock().unwrap().push(ticket);
                        lobby.freed();
                    }
                    let moment = Duration::from_micros(50);
                    drop(timeout(moment, one(&lobby, &gates, &free)).await);
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        for task in tasks {
            soon(task).await.unwrap();
        }
        assert!(most.load(SeqCst) <= 3);
        assert_eq!(gates.pending.inside(), 0);
        runtime.shutdown_background();
    }
}
