//! From objects to resources and statuses: as the real control plane has them, and what the world promises besides.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot read its data has failed

mod deploy;
mod egress;
mod golden_status;
mod golden_wds;
mod layer7;
mod networks;
mod promises;
mod refused;
mod robbed;
mod routes;
mod scenario;
mod strict;
mod udp;
mod waypoints;
