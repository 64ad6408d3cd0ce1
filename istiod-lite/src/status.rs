//! What the statuses of objects should say. Pure: the world fills the [`Book`], the leading replica
//! writes it down ([`crate::write::status`]).
//!
//! Enters: what the world found out about an object. Leaves: its [`Desired`] status: conditions
//! under Istio's names, and for a Gateway its addresses and listeners.
//!
//! | file | says |
//! |---|---|
//! | `policy` | which parts of an AuthorizationPolicy are enforced, and where |
//! | `route` | whether a route is taken by its parents, and carried by a waypoint |
//! | `waypoint` | whether a Service, ServiceEntry or WorkloadEntry is bound to the waypoint it names, and reached only through it |
//! | `gateway` | whether a Gateway can be reached, and what is wrong with its listeners |
//! | `invalid` | why an object was refused, and what is in force instead |

pub mod gateway;
pub mod invalid;
pub mod policy;
pub mod route;
pub mod waypoint;

pub use crate::write::status::{Book, Condition, Desired, Parent};

/// Condition of any object: False while a proxy refuses what was made of it.
pub const PROXY_ACCEPTED: &str = "ambit.io/ProxyAccepted";
