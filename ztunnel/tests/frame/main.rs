//! The frame in real network namespaces: sockets, the node agent's protocol, DNS, and the process
//! itself. Needs root.

mod agent;
mod control;
mod dns;
mod fixture;
mod namespaces;
mod place;
mod process;
