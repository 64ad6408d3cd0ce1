//! The control plane: objects in, what proxies must know out.
//!
//! ```text
//! directory ─ feed ─► world ─ translate ─► catalog ─► push ─► delta xDS streams
//!                       └────► roster ──► authenticate ─► ca ─► certificates
//! ```
//!
//! | module | is |
//! |---|---|
//! | [`world`], [`translate`] | pure: from objects to resources |
//! | [`catalog`], [`push`] | resources encoded once, and who is told of them when |
//! | [`status`] | what the statuses of objects should say |
//! | [`roster`], [`token`], [`authenticate`] | who calls, and as whom it may speak |
//! | [`machine`] | who joins that is no pod, and who has |
//! | [`ca`] | certificates |
//! | [`serve`], [`metrics`] | ports |
//! | [`webhook`] | admission: bad policies are refused when they are written, pods that ask for it are given a proxy |
//! | [`inject`] | pure: from a pod to the same with a proxy of its own |
//! | [`deploy`] | pure: from a Gateway to the objects that make its waypoint run |
//! | [`write`] | what the leading replica writes into the cluster |
//! | [`cluster`] | Kubernetes: where objects come from, and who vouches for callers |
//! | [`feed`] | the one owner of the world: from objects to catalog and roster |
//! | [`config`], [`start`] | flags; how the parts are put together |

pub mod authenticate;
pub mod ca;
pub mod catalog;
pub mod cluster;
pub mod config;
pub mod deploy;
mod disk;
pub mod feed;
pub mod inject;
pub mod machine;
pub mod metrics;
pub mod push;
pub mod roster;
pub mod serve;
pub mod start;
pub mod status;
pub mod token;
pub mod translate;
pub mod webhook;
pub mod world;
pub mod write;
