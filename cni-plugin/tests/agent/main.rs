//! The plugin and the agent as processes, with real network namespaces, packet rules and sockets. Needs root.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod chain;
mod golden;
mod host;
mod kubernetes;
mod labels;
mod probes;
mod requests;
mod support;
mod traffic;
mod ztunnels;
