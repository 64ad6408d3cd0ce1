//! What the control plane serves, asked for over real sockets: of the program, of one started in this process, and
//! (`kubernetes`, ignored) of one beside a real API server.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod at_start;
mod ca_exchanges;
mod certificates;
mod command_line;
mod discovery;
mod kubernetes;
mod streams;
mod support;
mod waypoints;
