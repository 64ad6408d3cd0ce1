//! The node proxy, as a library, so that tests can stand two nodes up in one process.
//!
//! Reading order, the order of a connection: `agent` and `pod` (where work arrives) → `outbound`, `inbound`, `local`
//! (the path) → `route` (pure decisions) → `node`, `connections`, `report` (state and what is said about it).

// The frame: process, pods, listeners, what operators see.
// (owner: the frame; add your modules here)

// The path of a connection.
pub mod connections;
mod headers;
pub mod inbound;
mod local;
pub mod node;
pub mod outbound;
mod rejudge;
pub mod report;
pub mod route;
