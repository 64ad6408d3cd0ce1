//! Of `waypoint::route`: what Gateway API and VirtualService promise, as tables; and whatever is asked of an index, a
//! look at every rule answers the same.

#[path = "route/against_oracle.rs"]
mod against_oracle;
#[path = "route/backends.rs"]
mod backends;
#[path = "route/edits.rs"]
mod edits;
#[path = "route/fuzz.rs"]
mod fuzz;
#[path = "route/matches.rs"]
mod matches;
#[path = "route/oracle.rs"]
mod oracle;
#[path = "route/precedence.rs"]
mod precedence;
#[path = "route/request.rs"]
pub(crate) mod request;
#[path = "route/tcp.rs"]
mod tcp;
#[path = "route/timeouts.rs"]
mod timeouts;
#[path = "route/wire.rs"]
pub(crate) mod wire;
