//! Of `waypoint::report`: what is counted, what is logged, and that each request is reported once.

#[path = "report/counted.rs"]
mod counted;
#[path = "report/logged.rs"]
mod logged;
#[path = "report/scene.rs"]
pub(crate) mod scene;
#[path = "report/tcp.rs"]
mod tcp;
#[path = "report/trace.rs"]
mod trace;
