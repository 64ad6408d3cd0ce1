//! A node's link made worse, as links are: slow with a queue before it, or losing packets. Both directions.

use anyhow::Result;

use crate::{lab::Lab, netns::Netns, plan::Host};

/// The table of rules that drop; nobody else has one of this name.
const TABLE: &str = "ambit-loss";

impl Lab {
    /// Lets no more than `megabits` a second pass a node's link, with room for `queue` bytes that wait. What finds
    /// no room is dropped.
    pub fn slow_link(&self, node: usize, megabits: u32, queue: u32) -> Result<()> {
        let rate = format!("{megabits}mbit");
        let queue = format!("{queue}b");
        let shape = [
            "root", "tbf", "rate", &rate, "burst", "32kb", "limit", &queue,
        ];
        for (netns, device) in self.link(node) {
            let words = ["tc", "qdisc", "replace", "dev", &device].into_iter();
            netns.exec(words.chain(shape))?.success()?;
        }
        Ok(())
    }

    /// Drops so many of a thousand packets that reach a node or leave it, at random.
    pub fn lossy_link(&self, node: usize, of_a_thousand: u32) -> Result<()> {
        for (netns, device) in self.link(node) {
            netns.nft(&format!(
                "table netdev {TABLE}\n\
                 delete table netdev {TABLE}\n\
                 table netdev {TABLE} {{\n\
                 chain in {{\n\
                 type filter hook ingress device \"{device}\" priority 0;\n\
                 numgen random mod 1000 < {of_a_thousand} drop\n\
                 }}\n}}\n"
            ))?;
        }
        Ok(())
    }

    /// Makes a node's link what it was.
    pub fn mend_link(&self, node: usize) -> Result<()> {
        for (netns, device) in self.link(node) {
            // Fails when it was not slow.
            netns.exec(["tc", "qdisc", "del", "dev", &device, "root"])?;
            netns.nft(&format!(
                "table netdev {TABLE}\ndelete table netdev {TABLE}\n"
            ))?;
        }
        Ok(())
    }

    /// Both ends of a node's cable: what leaves the node leaves by the one, what reaches it by the other.
    fn link(&self, node: usize) -> [(Netns, String); 2] {
        let (switch, port) = self.shared().fabric.port(Host::Node(node));
        [
            (self.node(node).netns().clone(), "eth0".to_owned()),
            (switch.clone(), port),
        ]
    }
}
