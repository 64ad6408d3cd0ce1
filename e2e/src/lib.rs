//! Tests on a real Kubernetes cluster, and the words they are written in.
//!
//! `e2e/run` makes the cluster, installs the mesh by its chart and starts the binary `e2e`, which runs [`tests`] one by one:
//!
//! * [`cluster`]  the API server, the nodes, any object as YAML
//! * [`place`]    a test's own namespace: servers, clients, policies; gone when the test is over
//! * [`pod`]      a pod: programs run in it, requests made from it
//! * [`feature`]  what layer 7 does, as YAML and questions, here and in the lab
//! * [`load`]     traffic that goes on while something happens, every failure counted
//! * [`alone`]    the same with nobody connected to it, while the API server is away
//! * [`capture`]  what a link carries, packet by packet
//! * [`node`]     a node as root sees it: processes, packets, files
//! * [`vm`]       a machine that is no pod
//! * [`mesh`]     the parts of the mesh: logs, metrics, restarts
//! * [`inside`]   what a ztunnel serves on its loopback alone
//! * [`program`]  `ambit`, `kubectl` and the like on this machine
//! * [`wait`]     until something is so
//! * [`whole`]    the mesh as its chart has it, put back where a test left it otherwise
//! * [`run`]      the runner: one test after another, dumps of what failed, a second attempt; [`report`] closes
//!
//! A test is an `async fn` whose name is a sentence; it fails by returning an error. The binary `e2e-app` (`app/`) is what runs inside
//! pods where no ordinary program counts exactly enough.

pub mod alone;
pub mod capture;
pub mod cluster;
pub mod feature;
pub mod inside;
pub mod load;
pub mod mesh;
pub mod node;
pub mod place;
pub mod pod;
pub mod program;
pub mod report;
pub mod run;
pub mod tests;
pub mod vm;
pub mod wait;
pub mod whole;
