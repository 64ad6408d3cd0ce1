//! The node proxy, as a library, so that tests can stand two nodes up in one process.
//!
//! Reading order, the order of a connection: `agent` and `pod` (where work arrives) → `outbound`, `inbound`, `local`
//! (the path) → `route` (pure decisions) → `node`, `connections`, `report` (state and what is said about it).

// The frame: process, pods, listeners, what operators see.
pub mod admin;
pub mod agent;
pub mod config;
pub mod dedicated;
pub mod dns;
pub mod keeper;
pub mod metrics;
pub mod netns;
pub mod pod;
mod turns;
pub mod workers;
pub mod xds;

// The path of a connection.
mod admit;
mod arrival;
pub mod bounds;
mod carry;
pub mod connections;
mod explain;
#[cfg(test)]
mod golden;
pub mod handover;
mod headers;
mod hint;
pub mod inbound;
mod local;
mod lookup;
pub mod node;
pub mod on_demand;
pub mod outbound;
mod preamble;
mod rejudge;
mod report;
mod retry;
pub mod route;
#[cfg(test)]
mod testing;
pub mod traffic;
pub mod udp;
