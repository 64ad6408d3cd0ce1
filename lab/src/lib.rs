//! Nodes and pods made of network namespaces on one Linux machine, running the real binaries.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = lab::Lab::builder().nodes(2).start()?;
//! lab.namespace("shop").ambient()?;
//! let web = lab.pod("shop/web").node(0).service_account("web").start()?;
//! let client = lab.pod("shop/client").node(1).start()?;
//! let nginx = web.spawn("web", ["python3", "-m", "http.server", "8080"])?;
//! web.until_listening(&nginx, 8080)?;
//! let page = client.exec(["curl", "-sS", &format!("http://{}/", web.at(8080))])?.success()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything lives in network namespaces named `ambit-<lab id>-…` and in `/run/ambit-lab/<lab id>`; the machine's
//! own namespace is left as it was. It needs root, iproute2, dnsmasq and the reference CNI plugins; captures need tcpdump.
//!
//! A test of one part that needs namespaces but no mesh stands on [`Place`], [`Switch`] and [`Chain`] alone.
//!
//! Reading order: [`builder`] (start), [`lab`] → [`pod`] → [`node`], [`ztunnel`], [`control_plane`] → [`cni`], [`fabric`] →
//! [`enter`] (how a program gets inside) → [`settle`] (waiting for the mesh) → [`inventory`] (how everything goes away again).

mod access;
mod builder;
mod capture;
mod cni;
mod component;
mod conflist;
mod control_plane;
mod enter;
mod fabric;
mod http;
mod inventory;
mod lab;
mod link;
mod machine;
mod metrics;
mod namespace;
mod netns;
mod node;
mod objects;
mod place;
mod plan;
mod pod;
mod process;
mod run;
mod settle;
mod switch;
pub mod wait;
mod waypoint;
mod ztunnel;

pub use access::{AccessLog, AccessRecord};
pub use builder::Builder;
pub use capture::{Capture, Captured};
pub use cni::{Chain, Refusal, Sandbox};
pub use component::Component;
pub use control_plane::OUTSIDE_NAMES;
pub use inventory::{Cleaned, Removed, clean, remove_all};
pub use lab::Lab;
pub use machine::Machine;
pub use metrics::{Metrics, Sample};
pub use namespace::{Namespace, Service};
pub use netns::Netns;
pub use node::Node;
pub use place::Place;
pub use plan::{MOST_NODES, Plan};
pub use pod::{Pod, PodBuilder, PodCommand};
pub use process::Process;
pub use run::Ran;
pub use switch::Switch;
pub use waypoint::{Waypoint, WaypointPod};

/// The reaper of one lab; only `lab reap` calls it.
#[doc(hidden)]
pub fn reap(id: &str) -> anyhow::Result<()> {
    inventory::reap(id)
}
