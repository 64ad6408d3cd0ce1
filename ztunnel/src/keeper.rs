//! The keeper: process 1 of the container, which holds the pods' listeners while the worker, the same binary, serves them.
//!
//! ```text
//!  kubelet ── signals ──▶ keeper ── starts, passes signals on, reaps ──▶ worker (the ztunnel of the rest of this crate)
//!                           ▲  │                                          │
//!                           │  └── on its start: every listener held ────▶│   one socketpair, SCM_RIGHTS
//!                           └───── hold, taken, release, pod by pod ──────┘
//! ```
//! A listening socket lives as long as anybody has it open: when the worker is killed, connections go on arriving in the
//! backlog and datagrams in the buffer, and the next worker takes them. It is started at once and given all that is
//! held, and adopts a pod's sockets when the node agent hands over the pod. What nobody claims when the agent's snapshot is
//! complete belonged to pods that left meanwhile, and is let go. What the dead worker had accepted is lost with it.
//!
//! Keep it small: it must live when nothing else does. One thread, no runtime, no log machinery, nothing allocated between
//! two events, no keys and no bytes of anybody. It knows nothing of what it holds but a number.
//!
//! | module | holds |
//! |---|---|
//! | `age` | since when listeners are held |
//! | `keep` | the process: its loop |
//! | `patience` | pure: start again, after which pause, or give up |
//! | `shelf` | what is held |
//! | `words` | the messages between the two |
//! | `worker` | the worker's end: [`Keeper`], `Sockets`, `Kept` |
//!
//! The socket options of a listener (mark, keepalive, reuse) are not sent along: they come from the environment, which is
//! the keeper's own and so the same for each of its workers, as is the binary (`/proc/self/exe`, even when the
//! file was replaced since).

mod age;
mod keep;
mod patience;
mod shelf;
mod words;
mod worker;

pub(crate) use age::since;
pub use keep::keep;
pub use worker::Keeper;
pub(crate) use worker::{Kept, Sockets};

/// What makes a process a keeper: its first argument.
pub const VERB: &str = "keep";

/// Tells a worker that its stdin leads to a keeper: the keeper's pid, and how many workers died before this one.
const KEPT: &str = "AMBIT_KEPT";
