//! The wires: a switch in a namespace of its own, and everything plugged into it.
//!
//! Veth pairs are made inside the switch's namespace and handed straight to the host's, so the machine's own
//! namespace never sees an interface of ours.

use anyhow::Result;

use crate::{
    netns::Netns,
    plan::{Host, Plan},
};

/// The switch and its hosts, cabled and routed.
#[derive(Debug)]
pub(crate) struct Fabric {
    switch: Netns,
    pub(crate) control_plane: Netns,
    pub(crate) outside: Netns,
    pub(crate) nodes: Vec<Netns>,
}

impl Fabric {
    pub(crate) fn build(plan: &Plan) -> Result<Self> {
        let switch = Netns::create(&plan.netns("fabric"))?;
        switch.ip("link add sw type bridge\nlink set sw up\n")?;
        let plug = |host| plug(plan, &switch, host);
        let control_plane = plug(Host::ControlPlane)?;
        let outside = plug(Host::Outside)?;
        let nodes = (0..plan.nodes())
            .map(|n| plug(Host::Node(n)))
            .collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            forward(node, plan.ipv6())?;
        }
        Ok(Self {
            switch,
            control_plane,
            outside,
            nodes,
        })
    }

    /// Pulls the plug of a node: its frames no longer reach anyone, the interface stays.
    pub(crate) fn unplug(&self, host: Host) -> Result<()> {
        self.switch
            .ip(&format!("link set {} nomaster\n", host.role()))
    }

    /// Puts the plug back.
    pub(crate) fn replug(&self, host: Host) -> Result<()> {
        self.switch
            .ip(&format!("link set {} master sw\n", host.role()))
    }
}

/// Makes a host's namespace, cables it to the switch, gives it its addresses and the routes to all pods.
fn plug(plan: &Plan, switch: &Netns, host: Host) -> Result<Netns> {
    let netns = Netns::create(&plan.netns(&host.role()))?;
    let port = host.role();
    switch.ip(&format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master sw up\n",
        netns.name()
    ))?;
    netns.ip(&host_batch(plan, host))?;
    Ok(netns)
}

fn host_batch(plan: &Plan, host: Host) -> String {
    let mut batch = String::new();
    for address in plan.on_fabric(host) {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        batch += &format!("addr add {address}/{prefix} dev eth0\n");
    }
    batch += "link set eth0 up\n";
    for node in (0..plan.nodes()).filter(|n| host != Host::Node(*n)) {
        let gateways = plan.on_fabric(Host::Node(node));
        for (subnet, via) in plan.pod_subnets(node).iter().zip(gateways) {
            batch += &format!("route add {subnet} via {via}\n");
        }
    }
    batch
}

fn forward(node: &Netns, ipv6: bool) -> Result<()> {
    node.sysctl("net/ipv4/ip_forward", "1")?;
    // Inherited from the machine otherwise; a router with two ways to a pod must not be strict.
    node.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    if ipv6 {
        node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_its_addresses_and_routes_to_the_others_pods_only() {
        let plan = Plan::new("l00000", 2, true).unwrap();
        assert_eq!(
            host_batch(&plan, Host::Node(0)),
            "addr add 10.90.0.10/24 dev eth0\n\
             addr add fd90::a/64 dev eth0\n\
             link set eth0 up\n\
             route add 10.244.1.0/24 via 10.90.0.11\n\
             route add fd10:244:1::/64 via fd90::b\n"
        );
    }
}
