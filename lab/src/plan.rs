//! Who has which name and which address in a lab. Pure.
//!
//! Every lab lives in network namespaces of its own, so all labs use the same addresses and only
//! the names, which carry the lab's id, differ. Labs that are joined (`Lab::way_to`) have other addresses: the second
//! number is greater by the number of its network.
//!
//! ```text
//!            fabric 10.90.0.0/24  fd90::/64
//!   cp .2 ──────┬───────┬────────┬─────────── outside .3, machines .4 to .9
//!         node-0 .10  node-1 .11 …
//!  pods 10.244.0.0/24  10.244.1.0/24
//!       fd10:244:0::/64  fd10:244:1::/64      service addresses 10.96.0.0/16, fd96::/112
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

/// The most nodes a lab may have: the fabric's last IPv4 byte bounds it.
pub const MOST_NODES: usize = 200;

/// The most machines beside the nodes: their addresses end before those of the nodes begin.
pub(crate) const MOST_MACHINES: usize = 6;

/// How many networks can be told apart by their addresses.
const NETWORKS: u8 = 5;
/// Between the services of one and those of the next, so that they stay clear of the fabrics.
const SERVICES: u8 = 16;

/// Names of interfaces and namespaces start with it, so that nothing foreign is ever taken for ours.
pub(crate) const PREFIX: &str = "ambit-";

/// The name of a network namespace of lab `id`.
pub(crate) fn netns(id: &str, role: &str) -> String {
    format!("{PREFIX}{id}-{role}")
}

/// Names and addresses of one lab.
#[derive(Debug, Clone)]
pub struct Plan {
    id: String,
    nodes: usize,
    ipv6: bool,
    network: u8,
}

impl Plan {
    pub(crate) fn new(id: &str, nodes: usize, ipv6: bool, network: u8) -> Result<Self> {
        ensure!(
            network < NETWORKS,
            "networks have numbers up to {}, not {network}",
            NETWORKS - 1
        );
        ensure!(
            (1..=MOST_NODES).contains(&nodes),
            "a lab has 1 to {MOST_NODES} nodes, not {nodes}"
        );
        Ok(Self {
            id: id.to_owned(),
            nodes,
            ipv6,
            network,
        })
    }

    /// The lab's id, part of every name it gives.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Whether there are IPv6 addresses beside the IPv4 ones.
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// The network namespace that plays `role`.
    pub(crate) fn netns(&self, role: &str) -> String {
        netns(&self.id, role)
    }

    /// The Kubernetes name of a node.
    pub fn node_name(&self, node: usize) -> String {
        format!("node-{node}")
    }

    /// The addresses of something on the fabric, IPv4 first.
    pub(crate) fn on_fabric(&self, host: Host) -> Vec<IpAddr> {
        let last = host.last_byte();
        self.families(
            Ipv4Addr::new(10, 90 + self.network, 0, last),
            Ipv6Addr::new(self.group(0xfd90), 0, 0, 0, 0, 0, 0, last.into()),
        )
    }

    /// The pods' subnets of a node, IPv4 first, in CIDR notation.
    pub fn pod_subnets(&self, node: usize) -> Vec<String> {
        let network = 244 + self.network;
        let mut subnets = vec![format!("10.{network}.{node}.0/24")];
        if self.ipv6 {
            subnets.push(format!("fd10:{network}:{node:x}::/64"));
        }
        subnets
    }

    /// The addresses of the `n`th service (from 0), IPv4 first.
    pub(crate) fn service_addresses(&self, n: u16) -> Vec<IpAddr> {
        let [high, low] = n.saturating_add(10).to_be_bytes();
        self.families(
            Ipv4Addr::new(10, 96 + SERVICES * self.network, high, low),
            Ipv6Addr::new(self.group(0xfd96), 0, 0, 0, 0, 0, 0, n.saturating_add(10)),
        )
    }

    fn group(&self, first: u16) -> u16 {
        first + 0x10 * u16::from(self.network)
    }

    fn families(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let mut addresses = vec![IpAddr::V4(v4)];
        if self.ipv6 {
            addresses.push(IpAddr::V6(v6));
        }
        addresses
    }
}

/// What is plugged into the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// istiod-lite and the outside world's name server.
    ControlPlane,
    /// A machine that belongs to no mesh.
    Outside,
    /// A machine that is no node, from 0.
    Machine(usize),
    /// A node, from 0.
    Node(usize),
}

impl Host {
    fn last_byte(self) -> u8 {
        match self {
            Host::ControlPlane => 2,
            Host::Outside => 3,
            Host::Machine(n) => u8::try_from(4 + n).map_or(9, |byte| byte.min(9)),
            // Bounded by MOST_NODES, so the sum stays below 255.
            Host::Node(n) => u8::try_from(10 + n).unwrap_or(u8::MAX),
        }
    }

    /// What its namespace and its port on the switch are called.
    pub(crate) fn role(self) -> String {
        match self {
            Host::ControlPlane => "cp".into(),
            Host::Outside => "outside".into(),
            Host::Machine(n) => format!("machine-{n}"),
            Host::Node(n) => format!("node-{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_lab_never_meet() {
        let mut all: Vec<IpAddr> = Vec::new();
        for network in 0..NETWORKS {
            let plan = Plan::new("l00001", MOST_NODES, true, network).unwrap();
            all.extend(plan.on_fabric(Host::ControlPlane));
            all.extend(plan.on_fabric(Host::Outside));
            all.extend((0..MOST_NODES).flat_map(|n| plan.on_fabric(Host::Node(n))));
            all.extend((0..MOST_MACHINES).flat_map(|n| plan.on_fabric(Host::Machine(n))));
            all.extend((0..300).flat_map(|n| plan.service_addresses(n)));
        }
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn without_ipv6_there_is_none() {
        let plan = Plan::new("l00001", 1, false, 0).unwrap();
        assert_eq!(plan.pod_subnets(0), ["10.244.0.0/24"]);
        assert!(plan.on_fabric(Host::Node(0)).iter().all(IpAddr::is_ipv4));
        assert!(plan.service_addresses(0).iter().all(IpAddr::is_ipv4));
    }

    #[test]
    fn a_lab_without_nodes_or_with_too_many_is_refused() {
        assert!(Plan::new("l00001", 0, true, 0).is_err());
        assert!(Plan::new("l00001", MOST_NODES + 1, true, 0).is_err());
    }
}
