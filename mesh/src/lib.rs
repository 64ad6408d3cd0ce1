//! The mesh as a proxy sees it.
//!
//! ```text
//!   control plane                      proxy
//!   ─────────────                      ─────
//!   catalog ─▶ session ═══ stream ═══▶ subscription ─▶ Update ─▶ Writer ─▶ Snapshot ─▶ pick, judge
//!              (delta xDS, server)      (delta xDS, client)        parse        (immutable)
//! ```
//!
//! # Layout
//! | file | what |
//! |---|---|
//! | [`names`] | networks, host keys, the interner |
//! | [`workload`], [`service`], [`policy`] | domain types, parsed at the door |
//! | [`egress`] | what becomes of connections to who is unknown |
//! | [`resource`] | pure: what a waypoint's resource is tied to |
//! | [`snapshot`] | the immutable whole and its lookups |
//! | [`members`] | the endpoints of one service, for whoever keeps something made of them |
//! | [`change`] | how an update becomes the next snapshot |
//! | [`mesh`](mod@mesh) | who holds the current snapshot, who is told |
//! | [`pick`](mod@pick) | pure: which endpoint |
//! | [`verdict`] | pure: may this connection pass |
//! | [`subscription`], [`session`] | pure: the two ends of delta xDS |
//! | [`node`](mod@node) | who a proxy says it is |
//! | [`stream`] | drives a subscription over gRPC; the only file that waits |

pub mod change;
mod claims;
mod crowd;
pub mod egress;
mod endpoints;
pub mod members;
pub mod mesh;
pub mod names;
pub mod node;
pub mod parse;
pub mod pick;
pub mod policy;
pub mod resource;
pub mod service;
pub mod session;
pub mod snapshot;
pub mod stream;
pub mod subscription;
mod udp;
mod unknown;
pub mod verdict;
mod wire;
pub mod workload;

pub use change::{Alias, Changes, Payload, Step, Update};
pub use egress::{Egress, EgressMode};
pub use members::Members;
pub use mesh::{Mesh, Writer};
pub use names::{Interner, NamespacedHost, Network};
pub use parse::{ParseError, Rejected};
pub use pick::{
    Candidate, Client, Endpoint, NoEndpoint, Standing, candidates, pick, pick_but, pick_waypoint,
    pick_waypoint_but, waypoint_candidates,
};
pub use policy::{Action, Policy, PolicyScope};
pub use resource::{Tie, gateway_of, key_of, service_of, ties};
pub use service::{
    HealthPolicy, LoadBalancing, Mode, Port, Scope, Service, Vip, VipAddress, Visibility,
};
pub use session::{Answer, Catalog, Changed, Entry, Reply, Session, WORKLOAD_TYPE};
pub use snapshot::{Applicable, ServiceChange, Snapshot};
pub use stream::{ClientConfig, ClientEvent, Demand, Kind, run_client};
pub use subscription::{Subscription, Wish};
pub use verdict::{Connection, DeniedBy, SourceIdentity, Verdict, judge};
pub use workload::{GatewayAddress, GatewayTarget, Locality, Membership, Tunnel, Workload};
