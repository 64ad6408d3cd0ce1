//! A switch: a bridge in a namespace of its own, and the namespaces plugged into it.
//!
//! Veth pairs are made inside the switch's namespace and handed straight to the host's, so the machine's own
//! namespace never sees an interface of ours.

use anyhow::Result;

use crate::netns::Netns;

/// A bridge; whoever is plugged in has `eth0` on it.
#[derive(Debug)]
pub struct Switch {
    netns: Netns,
}

impl Switch {
    /// Makes `netns` a switch.
    pub fn new(netns: &Netns) -> Result<Self> {
        netns.ip("link add sw type bridge\nlink set sw up\n")?;
        Ok(Self {
            netns: netns.clone(),
        })
    }

    /// Cables `host` to the switch's port `port` (at most 15 bytes); the host's end, `eth0`, is still down.
    pub fn plug(&self, port: &str, host: &Netns) -> Result<()> {
        self.netns.cable(port, host)?;
        self.netns.ip(&format!("link set {port} master sw up\n"))
    }

    /// Cables its port `port` to the port `theirs` of another switch: the two carry each other's frames.
    pub(crate) fn join(&self, port: &str, other: &Self, theirs: &str) -> Result<()> {
        self.netns.ip(&format!(
            "link add {port} type veth peer name {theirs} netns {}\nlink set {port} master sw up\n",
            other.netns.name()
        ))?;
        let theirs = format!("link set {theirs} master sw up\n");
        other.netns.ip(&theirs)
    }

    /// Where its ports are.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Pulls the plug: frames of the port no longer reach anyone, the interface stays.
    pub(crate) fn unplug(&self, port: &str) -> Result<()> {
        self.netns.ip(&format!("link set {port} nomaster\n"))
    }

    /// Puts the plug back.
    pub(crate) fn replug(&self, port: &str) -> Result<()> {
        self.netns.ip(&format!("link set {port} master sw\n"))
    }
}
