//! Established connections leave this process for another, and nobody on either side notices.
//!
//! What is frozen is one whole: a connection of our own engine with all its tunnels and the apps' sockets
//! that they are copied to, or a pair of sockets that are copied to each other.
//!
//! ```text
//!  elder                                                        successor
//!  Freezer::freeze ─▶ Frozen ── bytes, descriptors ──▶ Taken::read      checked; touches nothing
//!                       │                                 │
//!                       ├─ forget ◀───── the commit ─────▶ thaw ─▶ Thawed: runs
//!                       └─ take_back: as if nothing had been    (drop: as if it had never been)
//! ```
//!
//! 1. **Stop.** No stream begins any more; those that are being asked for or answered are waited for. Then
//!    every copy stops between two steps and says what it holds.
//! 2. **Write down.** Keys and record numbers, HTTP/2, what was read and not opened, sealed and not sent,
//!    what waits for which app, how each direction stands; descriptors are duplicated. No byte is anywhere
//!    else: what the kernel holds stays with the sockets.
//! 3. **Put away.** The state moves into [`Frozen`]. The futures of copies and connections stay, and wait:
//!    there is nothing left that they could seal, read or write with.
//! 4. **Decide, once.** [`Frozen::take_back`] or [`Frozen::forget`]; both use it up, as [`Taken::thaw`] does.
//!
//! **Exactly once** is kept by types within a process, and by whoever calls between processes: a key and a
//! record number used twice would give away what was sealed. Thaw only what the elder has forgotten or
//! will never do anything else with; take back only what nobody else will ever thaw.
//!
//! The bytes hold traffic secrets: they belong into memory and over a socket between two processes of the
//! same user, and nowhere else. All of ours are overwritten after use.
//!
//! | file | part |
//! |---|---|
//! | `sign` | where a freeze stands, for those who must stop |
//! | `berth` | where a dialled connection belongs in a pool |
//! | `brake` | how a pair is stopped |
//! | `wire` | bytes, written and read |
//! | `taken` | the successor's half |
//!
//! How a connection is stopped is in `own/freeze`, what is written of it in `own/state/written`.

pub(crate) mod berth;
pub(crate) mod brake;
pub(crate) mod sign;
mod taken;
pub(crate) mod wire;

use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::Duration,
};

use self::{
    brake::{Brake, FrozenPair},
    wire::Written,
};
pub use self::{
    taken::{Dialled, Resumed, Taken, TakenTunnel, Thawed},
    wire::Kind,
};
use crate::{frames, own, records};

/// Of the layout; a process that finds another takes nothing over.
pub const VERSION: u8 = 3;

/// Why something was not frozen. Everything goes on as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFrozen {
    /// The `h2` engine carries it, which cannot be written down.
    #[error("the engine that carries it cannot be handed over")]
    Engine,
    /// It is carried by something else than a TCP socket.
    #[error("it is not carried by a TCP socket")]
    Socket,
    /// One of its tunnels is a byte stream to somebody, such as TLS inside a tunnel.
    #[error("there is a connection inside one of its tunnels")]
    Inside,
    /// So many of its tunnels were being asked for, answered or used by hand until time was over.
    #[error("{0} of its tunnels did not come to rest in time")]
    Busy(usize),
    /// Somebody else freezes it, or has.
    #[error("it is being frozen already")]
    Already,
    /// It has ended, or is about to.
    #[error("it has ended")]
    Over,
    /// Its descriptors could not be duplicated.
    #[error("no descriptors to hand it over with: {0}")]
    Descriptors(io::ErrorKind),
}

/// Why something cannot be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ThawError {
    /// Another version wrote it.
    #[error("the state is of version {0}, ours is {VERSION}")]
    Version(u8),
    /// Bytes are missing, or there are too many.
    #[error("the state is cut off or has a surplus")]
    Length,
    /// What it says cannot be.
    #[error("no connection has such a state: {0}")]
    Impossible(&'static str),
    /// Other descriptors came than those that belong to it.
    #[error("{got} descriptors came, {expected} belong to it")]
    Descriptors {
        /// As many as it says.
        expected: usize,
        /// As many as came.
        got: usize,
    },
    /// A record layer that makes no sense.
    #[error("TLS: {0}")]
    Records(#[from] records::StateError),
    /// An HTTP/2 that makes no sense.
    #[error("HTTP/2: {0}")]
    Frames(#[from] frames::StateError),
}

/// A hold on something that can be frozen. It keeps nothing alive.
#[derive(Clone)]
pub struct Freezer {
    id: u64,
    of: Of,
}

#[derive(Clone)]
enum Of {
    Connection(Weak<own::Shared>),
    Pair(Weak<Brake>),
}

impl Freezer {
    pub(crate) fn of(shared: &Arc<own::Shared>) -> Self {
        Self {
            id: shared.id(),
            of: Of::Connection(Arc::downgrade(shared)),
        }
    }

    pub(crate) fn of_pair(id: u64, brake: &Arc<Brake>) -> Self {
        Self {
            id,
            of: Of::Pair(Arc::downgrade(brake)),
        }
    }

    /// Its number: nothing else of this process ever has it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether a freeze would have to wait just now: tunnels of it are asked for and not answered, or used by hand.
    pub fn is_busy(&self) -> bool {
        match &self.of {
            Of::Connection(shared) => shared.upgrade().is_some_and(|shared| shared.loose() > 0),
            Of::Pair(_) => false,
        }
    }

    /// Stops it between two steps and writes it down. What cannot be cut in the middle is waited for:
    /// tunnels that are asked for and not answered, requests that somebody holds. Meanwhile bytes move,
    /// but no request is given out and no tunnel begins on this connection. Ask from a task of your own: those
    /// that copy, and the one that drives the connection, have to be run for it. Cancel safe: cancelled or
    /// failed, everything goes on.
    ///
    /// # Errors
    /// See [`NotFrozen`].
    pub async fn freeze(&self, within: Duration) -> Result<Frozen, NotFrozen> {
        let (inner, written) = match &self.of {
            Of::Connection(shared) => {
                let shared = shared.upgrade().ok_or(NotFrozen::Over)?;
                let frozen = match tokio::time::timeout(within, shared.freeze()).await {
                    Ok(frozen) => frozen?,
                    Err(_) => return Err(NotFrozen::Busy(shared.loose().max(1))),
                };
                (Inner::Connection(frozen.0), frozen.1)
            }
            Of::Pair(brake) => {
                let brake = brake.upgrade().ok_or(NotFrozen::Over)?;
                let frozen = tokio::time::timeout(within, brake.freeze()).await;
                let (pair, written) = frozen.map_err(|_| NotFrozen::Busy(1))??;
                (Inner::Pair(pair), written)
            }
        };
        Ok(Frozen {
            id: self.id,
            written,
            inner: Some(inner),
        })
    }
}

/// Something that nobody moves a byte of, until one of [`Frozen::take_back`] and [`Frozen::forget`] is
/// called. Dropped without, it counts as forgotten: better lost than owned twice.
#[must_use = "it has to be taken back or forgotten"]
pub struct Frozen {
    id: u64,
    written: Written,
    inner: Option<Inner>,
}

enum Inner {
    Connection(own::Frozen),
    Pair(FrozenPair),
}

impl Frozen {
    /// That of its [`Freezer`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.written.kind
    }

    /// The tunnels in it, by [`crate::Tunnel::stream`], in the order of their descriptors. A pair has none.
    pub fn streams(&self) -> &[u32] {
        &self.written.streams
    }

    /// For [`Taken::read`]. They hold keys.
    pub fn bytes(&self) -> &[u8] {
        self.written.bytes.as_ref()
    }

    /// For [`Taken::read`], in this order.
    pub fn descriptors(&self) -> &[OwnedFd] {
        &self.written.descriptors
    }

    /// Nobody else will ever go on with it: it goes on here, as if nothing had been.
    pub fn take_back(mut self) {
        match self.inner.take() {
            Some(Inner::Connection(connection)) => connection.take_back(),
            Some(Inner::Pair(pair)) => pair.take_back(&self.written.descriptors),
            None => {}
        }
    }

    /// Somebody else goes on with it, or will: here it is over. Nothing is sent and nothing shut down;
    /// copies end with [`crate::Ended::handed_over`], a connection with [`crate::ConnectionError::HandedOver`].
    pub fn forget(mut self) {
        self.forget_inner();
    }

    fn forget_inner(&mut self) {
        match self.inner.take() {
            Some(Inner::Connection(connection)) => connection.forget(),
            Some(Inner::Pair(pair)) => pair.forget(),
            None => {}
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.inner.is_some() {
            tracing::error!(
                id = self.id,
                "a frozen connection was dropped, neither taken back nor given away"
            );
            self.forget_inner();
        }
    }
}

impl fmt::Debug for Freezer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Freezer({})", self.id)
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen")
            .field("id", &self.id)
            .field("kind", &self.written.kind)
            .field("streams", &self.written.streams)
            .field("bytes", &self.bytes().len())
            .finish_non_exhaustive()
    }
}
