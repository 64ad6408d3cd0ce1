//! Connections go from one ztunnel to the next, and nobody who uses them notices.
//!
//! 1. a ztunnel that serves (the *elder*) has a socket in a folder that is root's alone    (`door`, `channel`)
//! 2. one that is to take its place (the *successor*) registers there: who are you, can we read each other, which of us was
//!    here first?                                                                            (`message`)
//! 3. the elder is told to stop; its listeners leave new connections to the successor        (`turns`)
//! 4. pod by pod, connection by connection: stopped, written down, offered with its sockets  (`pass`; `told`, `memory`)
//! 5. the successor looks at it, takes the right to go on with it, and goes on               (`life`, `adopt`; `right`)
//! 6. the elder forgets it, or, if the right was not taken, goes on as if nothing had been
//!
//! What cannot be handed over drains as without a successor. A report is written once, by whoever has the connection at
//! its end, over all its bytes and its whole life; in the metrics each counts what moved through it.

mod adopt;
mod bytes;
mod channel;
mod counts;
mod door;
mod life;
mod memory;
mod message;
mod pass;
mod right;
mod told;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hbone::handover::Freezer;
use ops::ready::Gate;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::agent::Roster;
use crate::keeper;
use crate::node::Node;
use crate::pod::Pod;
use channel::{Bell, Channel};
use counts::{Counts, Outcome};
use door::Name;
use life::Life;
pub(crate) use told::Told;

/// What the connections of a node have to do with it.
#[derive(Debug)]
pub struct Handover {
    stage: watch::Sender<Stage>,
    arrivals: Mutex<HashMap<u64, Arrived>>,
    counts: Counts,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No connection goes anywhere.
    Idle,
    /// They are being handed over.
    Going,
    /// What is still here stays, most likely.
    Over,
}

/// A tunnel connection that came to a pod.
#[derive(Debug)]
struct Arrived {
    freezer: Freezer,
    pod: Arc<Pod>,
    peer: SocketAddr,
    local: SocketAddr,
}

/// An [`Arrived`] is listed until this is dropped.
#[derive(Debug)]
pub(crate) struct Listed<'a>(&'a Handover, u64);

impl Default for Handover {
    fn default() -> Self {
        Self {
            stage: watch::Sender::new(Stage::Idle),
            arrivals: Mutex::default(),
            counts: Counts::default(),
        }
    }
}

impl Handover {
    /// Registers `ambit_handovers`.
    pub fn register(&self, registry: &mut Registry) {
        self.counts.register(registry);
    }

    fn count(&self, outcome: Outcome) {
        self.counts.count(outcome);
    }

    /// A tunnel connection has come to `pod`.
    pub(crate) fn arrived(
        &self,
        freezer: Freezer,
        pod: &Arc<Pod>,
        (peer, local): (SocketAddr, SocketAddr),
    ) -> Listed<'_> {
        let (id, pod) = (freezer.id(), pod.clone());
        let arrived = Arrived {
            freezer,
            pod,
            peer,
            local,
        };
        self.lock().insert(id, arrived);
        Listed(self, id)
    }

    /// Waits while connections are being handed over: a peer is not told to open its streams elsewhere when a successor is about
    /// to serve them here.
    pub(crate) async fn undecided(&self) {
        let mut stage = self.stage.subscribe();
        // The sender lives as long as we do.
        let _ = stage.wait_for(|stage| *stage != Stage::Going).await;
    }

    fn enter(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    fn arrivals(&self) -> Vec<(Freezer, Arc<Pod>, SocketAddr, SocketAddr)> {
        let arrivals = self.lock();
        let listed = arrivals
            .values()
            .map(|one| (one.freezer.clone(), one.pod.clone(), one.peer, one.local));
        listed.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arrived>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// The successor, if one has registered.
#[derive(Debug, Clone, Default)]
struct Registered(Arc<Mutex<Option<Arc<Channel>>>>);

impl Registered {
    fn alive(&self) -> Option<Arc<Channel>> {
        self.lock().clone().filter(|channel| channel.is_alive())
    }

    fn is_alive(&self) -> bool {
        self.alive().is_some()
    }

    fn set(&self, channel: Channel) {
        *self.lock() = Some(Arc::new(channel));
    }

    fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process's part in hand-overs: successor at first, elder after.
pub struct Part {
    node: Arc<Node>,
    bell: Arc<Bell>,
    registered: Registered,
    named: Named,
}

/// The name of this process's door, when it has opened one.
type Named = Arc<Mutex<Option<Name>>>;

impl Part {
    /// Begins when the mesh is known, if the operator wants hand-overs. `gate` opens when it is known whether there is an elder, and this is registered with it.
    /// What is done for connections is done on `runtime`.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn begin(
        node: &Arc<Node>,
        roster: Roster,
        runtime: Handle,
        gate: Gate,
    ) -> io::Result<Self> {
        let Some(folder) = node.config.handover_dir() else {
            gate.open();
            return Ok(Self {
                node: node.clone(),
                bell: Arc::new(Bell::new()?),
                registered: Registered::default(),
                named: Named::default(),
            });
        };
        let (bell, registered, named) = (
            Arc::new(Bell::new()?),
            Registered::default(),
            Named::default(),
        );
        let since = keeper::since().unwrap_or_else(|error| {
            tracing::warn!(%error, "hand-over: nothing says since when this ztunnel is here; it counts as the newest");
            u64::MAX
        });
        let life = Life {
            node: node.clone(),
            roster,
            runtime,
            folder,
            bell: bell.clone(),
            registered: registered.clone(),
            named: named.clone(),
            since,
            gate,
        };
        std::thread::Builder::new()
            .name("handover".into())
            .spawn(move || life.live())?;
        let node = node.clone();
        Ok(Self {
            node,
            bell,
            registered,
            named,
        })
    }

    /// This process is to stop: what can go to a successor goes there. Say it before the connections are told.
    pub fn leave(&self) {
        if self.registered.is_alive() {
            self.node.handover.enter(Stage::Going);
        }
        self.bell.ring();
    }

    /// The process ends: its name goes along, unless it is another's by now.
    pub fn end(self) {
        let named = self.named.lock();
        if let Some(name) = &*named.unwrap_or_else(PoisonError::into_inner) {
            name.remove();
        }
    }
}
