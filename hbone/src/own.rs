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
//! knows nothing of the socket's type, and nothing outside of this folder knows of it.
//!
//! | file | part |
//! |---|---|
//! | `state` | what is shared, and each step that can be taken with it |
//! | `flow` | one stream: what waits for its reader, how it stands |
//! | `output` | what is sealed and not yet with the kernel |
//! | `half` | the two halves of a stream, as tunnels hold them |
//! | `app` | an app's socket, which driver and reader both write |
//! | `scratch` | where bytes are opened and sealed |

mod app;
mod flow;
mod half;
mod output;
mod scratch;
mod state;

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

pub(crate) use self::{
    app::{App, Shared as SharedApp},
    half::{Receiving, Sending, ask, halves},
    scratch::{PAYLOAD, RECORDS},
    state::{Arrival, End, Pumped, State, Stuck},
};
use self::{
    output::Io,
    state::{Driven, Role},
};
use crate::{
    frames::{Mux, Settings},
    gauge::Gauge,
    tls::handshake::Established,
};

/// Reads before the driver lets others of its thread have their turn: half a megabyte at most.
const READS: usize = 4;

/// One connection.
pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    /// The client's end of a connection.
    pub(crate) fn client(io: impl Io + 'static, keys: Established, gauge: Arc<Gauge>) -> Arc<Self> {
        let mux = Mux::client(&Settings::client());
        Self::new(State::new(Role::Client, Box::new(io), keys, mux, gauge))
    }

    /// The server's end of a connection.
    pub(crate) fn server(io: impl Io + 'static, keys: Established, gauge: Arc<Gauge>) -> Arc<Self> {
        let mux = Mux::server(&Settings::server());
        Self::new(State::new(Role::Server, Box::new(io), keys, mux, gauge))
    }

    fn new(mut state: State) -> Arc<Self> {
        state.open_first();
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// Takes one step. Those whom it concerns are woken when the lock is free again.
    pub(crate) fn with<R>(&self, step: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = step(&mut state);
        let awake = mem::take(&mut state.awake);
        drop(state);
        for waker in awake {
            waker.wake();
        }
        result
    }

    /// Drives the connection until there is a request, an end, or nothing to do.
    pub(crate) fn poll_drive(&self, cx: &mut Context<'_>) -> Poll<Result<Arrival, End>> {
        for _ in 0..READS {
            match self.with(|state| state.drive(cx)) {
                Poll::Ready(Driven::Read) => {}
                Poll::Ready(Driven::Asked(arrival)) => return Poll::Ready(Ok(arrival)),
                Poll::Ready(Driven::Over(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Drives a server's connection until the client's preface has come.
    pub(crate) fn poll_greeted(&self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            if self.with(|state| state.greeted()) {
                return Poll::Ready(Ok(()));
            }
            match std::task::ready!(self.with(|state| state.drive(cx))) {
                Driven::Over(end) => return Poll::Ready(Err(end)),
                // Requests come after the preface.
                Driven::Read | Driven::Asked(_) => {}
            }
        }
    }
}

/// Whoever drives: when it goes, the connection is over for everybody.
pub(crate) struct Driver(pub(crate) Arc<Shared>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.with(State::abandon);
    }
}

/// Whoever opens streams: when it goes, and the last of them, the connection ends in order.
pub(crate) struct Opener(pub(crate) Arc<Shared>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.with(State::unwanted);
    }
}
