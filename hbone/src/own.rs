//! Our own engine: TLS records, HTTP/2 and streams over one socket, without a task between an app's
//! socket and the tunnel's.
//!
//! 1. a handshake leaves keys and a socket           ([`Shared::client`], [`Shared::server`])
//! 2. one task drives: it reads and wakes the readers ([`Shared::poll_drive`])
//! 3. readers take what was read, writers seal and write by themselves ([`Receiving`], [`Sending`])
//! 4. between the tunnel and an app's TCP socket the driver writes and the writer reads without
//!    a step between ([`App`])
//!
//! All of them share one [`State`] behind a lock that is held for one step: a read, a frame, a chunk. It
//! knows nothing of the socket's type, and nothing outside of this folder knows of it. While a connection
//! is frozen ([`crate::handover`]) the state is not there: whoever lets go of something is heard later.
//!
//! | file | part |
//! |---|---|
//! | `state` | what is shared, and each step that can be taken with it |
//! | `flow` | one stream: what waits for its reader, how it stands |
//! | `output` | what is sealed and not yet with the kernel |
//! | `pace` | how much that may be, on this path |
//! | `half` | the two halves of a stream, as tunnels hold them |
//! | `app` | an app's socket, which driver and reader both write |
//! | `scratch` | where bytes are opened and sealed |
//! | `freeze` | the state is put away, and comes back or does not |
//! | `late` | a thread writes what its tasks have said, once for each connection |

mod app;
mod flow;
mod freeze;
mod half;
mod late;
mod output;
mod pace;
mod scratch;
mod state;

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::net::TcpStream;

pub use self::late::write_by_turns;
pub(crate) use self::{
    app::{App, Shared as SharedApp},
    flow::Parked,
    freeze::Frozen,
    half::{Receiving, Sending, ask, halves, takes_datagrams},
    scratch::{LEFT, PAYLOAD, RECORDS},
    state::{Arrival, End, Pumped, Role, State, Stuck, Thawing, ThawingCopy, ThawingFlow},
};
use self::{freeze::Absent, output::Io, state::Driven};
use crate::{
    frames::{Mux, Settings},
    gauge::Gauge,
    handover::{
        berth::Berth,
        sign::{Sign, Standing},
    },
    socket::Socket,
    tls::{Session, handshake::Established},
    turn,
};

/// Reads before the driver lets others of its thread have their turn: half a megabyte at most.
const READS: usize = 4;

/// One connection.
pub(crate) struct Shared {
    /// No other connection of this process has it.
    id: u64,
    session: Session,
    /// Where it belongs, if a pool has made it.
    berth: OnceLock<Berth>,
    sign: Sign,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Not there while it is frozen, and after it was given away.
    state: Option<State>,
    absent: Absent,
}

/// A number for whatever can be frozen.
pub(crate) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Shared {
    /// The client's end of a connection.
    pub(crate) fn client(io: impl Io + 'static, keys: Established, gauge: Arc<Gauge>) -> Arc<Self> {
        let mux = Mux::client(&Settings::client());
        Self::begun(Role::Client, Box::new(io), keys, mux, gauge)
    }

    /// The server's end of a connection.
    pub(crate) fn server(io: impl Io + 'static, keys: Established, gauge: Arc<Gauge>) -> Arc<Self> {
        let mux = Mux::server(&Settings::server());
        Self::begun(Role::Server, Box::new(io), keys, mux, gauge)
    }

    /// The server's end of a connection that carries datagrams too.
    pub(crate) fn server_of_datagrams(
        io: impl Io + 'static,
        keys: Established,
        gauge: Arc<Gauge>,
    ) -> Arc<Self> {
        let mux = Mux::server_of_datagrams(&Settings::server());
        Self::begun(Role::Server, Box::new(io), keys, mux, gauge)
    }

    /// A connection that was frozen.
    pub(crate) fn thawed(io: TcpStream, parts: Thawing, gauge: Arc<Gauge>) -> Arc<Self> {
        // Its path is judged anew.
        io.tune();
        let (session, berth) = (parts.session.clone(), parts.berth.clone());
        let shared = Self::new(State::thawed(Box::new(io), parts, gauge), session);
        berth.into_iter().for_each(|berth| shared.moor(berth));
        shared
    }

    fn begun(
        role: Role,
        io: Box<dyn Io>,
        keys: Established,
        mux: Mux,
        gauge: Arc<Gauge>,
    ) -> Arc<Self> {
        let session = keys.session.clone();
        let mut state = State::new(role, io, keys, mux, gauge);
        state.open_first();
        Self::new(state, session)
    }

    fn new(state: State, session: Session) -> Arc<Self> {
        Arc::new(Self {
            id: number(),
            session,
            berth: OnceLock::new(),
            sign: Sign::default(),
            inner: Mutex::new(Inner {
                state: Some(state),
                absent: Absent::default(),
            }),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// It belongs to a pool. Said once, before the first tunnel.
    pub(crate) fn moor(&self, berth: Berth) {
        let _ = self.berth.set(berth);
    }

    pub(crate) fn berth(&self) -> Option<&Berth> {
        self.berth.get()
    }

    pub(crate) fn standing(&self) -> Standing {
        self.sign.now()
    }

    /// Takes one step. Those whom it concerns are woken when the lock is free again. None when there is
    /// nothing to take it with: frozen, or given away.
    pub(crate) fn with<R>(self: &Arc<Self>, step: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.try_with(step).ok()
    }

    /// The same; gives the step back when there is nothing to take it with.
    fn try_with<R, S: FnOnce(&mut State) -> R>(self: &Arc<Self>, step: S) -> Result<R, S> {
        let mut inner = self.lock();
        let Some(state) = &mut inner.state else {
            return Err(step);
        };
        let result = step(state);
        let awake = mem::take(&mut state.awake);
        let late = state.is_to_be_listed();
        drop(inner);
        for waker in awake {
            waker.wake();
        }
        // Behind those that were woken, who may have something to say as well.
        if late && !late::add(self) {
            self.with(State::write_late);
        }
        Ok(result)
    }

    /// Takes a step that must not be lost: while the connection is frozen, as soon as it is not any
    /// more; never, when it is given away. What it gives back is dropped when nothing is locked.
    pub(crate) fn with_or_later<S>(self: &Arc<Self>, step: S)
    where
        S: FnOnce(&mut State) -> Option<Arc<App>> + Send + 'static,
    {
        let mut step = step;
        loop {
            step = match self.try_with(step) {
                Ok(app) => return drop(app),
                Err(step) => step,
            };
            let mut inner = self.lock();
            if inner.state.is_some() {
                continue; // it has just come back
            }
            if self.sign.now() != Standing::Given {
                return inner.absent.later.push(Box::new(step));
            }
            return drop(inner);
        }
    }

    /// Ready when the connection is not frozen.
    pub(crate) fn poll_here(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sign.now() != Standing::Away {
            return Poll::Ready(());
        }
        let mut inner = self.lock();
        if self.sign.now() != Standing::Away {
            return Poll::Ready(());
        }
        inner.absent.wait(cx);
        Poll::Pending
    }

    /// Drives the connection until there is a request, an end, or nothing to do.
    pub(crate) fn poll_drive(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<Arrival, End>> {
        for _ in 0..READS {
            let Some(driven) = self.with(|state| state.drive(cx)) else {
                std::task::ready!(self.poll_here(cx));
                if self.sign.now() == Standing::Given {
                    return Poll::Ready(Err(End::HandedOver));
                }
                continue;
            };
            match driven {
                Poll::Ready(Driven::Read) => {}
                Poll::Ready(Driven::Asked(arrival)) => return Poll::Ready(Ok(arrival)),
                Poll::Ready(Driven::Over(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => return Poll::Pending,
            }
        }
        turn::over(cx)
    }

    /// Drives a server's connection until the client's preface has come. Nobody can have frozen it yet.
    pub(crate) fn poll_greeted(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            if self.with(|state| state.greeted()).unwrap_or(false) {
                return Poll::Ready(Ok(()));
            }
            let driven = self.with(|state| state.drive(cx));
            match std::task::ready!(driven.unwrap_or(Poll::Pending)) {
                Driven::Over(end) => return Poll::Ready(Err(end)),
                // Requests come after the preface.
                Driven::Read | Driven::Asked(_) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever drives: when it goes, the connection is over for everybody.
pub(crate) struct Driver(pub(crate) Arc<Shared>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.with_or_later(|state| {
            state.abandon();
            None
        });
    }
}

/// Whoever opens streams: when it goes, and the last of them, the connection ends in order.
pub(crate) struct Opener(pub(crate) Arc<Shared>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.with_or_later(|state| {
            state.unwanted();
            None
        });
    }
}
