//! The waypoint through real sockets and real ztunnels: a lab whose namespace is behind one.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "waypoint/access.rs"]
mod access;
#[path = "waypoint/ahead.rs"]
mod ahead;
#[path = "waypoint/app.rs"]
mod app;
#[path = "waypoint/attacks.rs"]
mod attacks;
#[path = "waypoint/authorizers.rs"]
mod authorizers;
#[path = "waypoint/breaking.rs"]
mod breaking;
#[path = "waypoint/bytes.rs"]
mod bytes;
#[path = "waypoint/churn.rs"]
mod churn;
#[path = "waypoint/drain.rs"]
mod drain;
#[path = "waypoint/explained.rs"]
mod explained;
#[path = "waypoint/flood.rs"]
mod flood;
#[path = "waypoint/hedged.rs"]
mod hedged;
#[path = "waypoint/hostile.rs"]
mod hostile;
#[path = "waypoint/http.rs"]
mod http;
#[path = "waypoint/istio.rs"]
mod istio;
#[path = "waypoint/keys.rs"]
mod keys;
#[path = "waypoint/limits.rs"]
mod limits;
#[path = "waypoint/moved.rs"]
mod moved;
#[path = "waypoint/preamble.rs"]
mod preamble;
#[path = "waypoint/processors.rs"]
mod processors;
#[path = "waypoint/reports.rs"]
mod reports;
#[path = "waypoint/rules.rs"]
mod rules;
#[path = "waypoint/secured.rs"]
mod secured;
#[path = "waypoint/shop.rs"]
mod shop;
#[path = "waypoint/tokens.rs"]
mod tokens;
#[path = "waypoint/told.rs"]
mod told;
#[path = "waypoint/tries.rs"]
mod tries;

// Proof against others' programs: each test is asked for by name and told where the program is.
#[path = "proof/autobahn.rs"]
mod autobahn;
#[path = "differential/run.rs"]
mod differential;
#[path = "proof/grpc.rs"]
mod grpc;
#[path = "proof/h2spec.rs"]
mod h2spec;
#[path = "proof/otelcol.rs"]
mod otelcol;
