//! The wires of a lab: the [`Switch`], and the hosts plugged into it with their addresses and routes.

use anyhow::Result;

use crate::{
    netns::Netns,
    plan::{Host, Plan},
    switch::Switch,
};

/// The switch and its hosts, cabled and routed.
#[derive(Debug)]
pub(crate) struct Fabric {
    switch: Switch,
    pub(crate) control_plane: Netns,
    pub(crate) outside: Netns,
    pub(crate) nodes: Vec<Netns>,
}

impl Fabric {
    pub(crate) fn build(plan: &Plan) -> Result<Self> {
        let switch = Switch::new(&Netns::create(&plan.netns("fabric"))?)?;
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

    /// The switch's end of a host's cable: where it is, and its name.
    pub(crate) fn port(&self, host: Host) -> (&Netns, String) {
        (self.switch.netns(), host.role())
    }

    /// A machine more. What it has no route for goes to the first node, as to a router of its network.
    pub(crate) fn add_machine(&self, plan: &Plan, number: usize) -> Result<Netns> {
        let netns = plug(plan, &self.switch, Host::Machine(number))?;
        for via in plan.on_fabric(Host::Node(0)) {
            netns.ip(&format!("route add default via {via}\n"))?;
        }
        Ok(netns)
    }

    /// A cable to another lab's switch.
    pub(crate) fn join(&self, ours: &str, other: &Self, theirs: &str) -> Result<()> {
        self.switch.join(ours, &other.switch, theirs)
    }

    /// Pulls the plug of a node: its frames no longer reach anyone, the interface stays.
    pub(crate) fn unplug(&self, host: Host) -> Result<()> {
        self.switch.unplug(&host.role())
    }

    /// Puts the plug back.
    pub(crate) fn replug(&self, host: Host) -> Result<()> {
        self.switch.replug(&host.role())
    }
}

/// Makes a host's namespace, cables it to the switch, gives it its addresses and the routes to all pods.
fn plug(plan: &Plan, switch: &Switch, host: Host) -> Result<Netns> {
    let netns = Netns::create(&plan.netns(&host.role()))?;
    switch.plug(&host.role(), &netns)?;
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
        let plan = Plan::new("l00000", 2, true, 0).unwrap();
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
