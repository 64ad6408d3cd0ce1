//! The frame in real network namespaces: sockets, the node agent's protocol, DNS, and the process
//! itself. Needs root.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests

mod agent;
mod control;
mod dns;
mod fixture;
mod keeper;
mod namespaces;
mod place;
mod process;
mod settings;
mod succession;
mod versions;
