//! Network namespaces by themselves: what a test of one part stands on, where a whole lab would be too much.
//!
//! Each place is a claim of its own (see [`crate::inventory`]). With its end, or when the next one finds its owner
//! gone, what runs inside is ended, and the namespace and its files are removed.

use std::{ops::Deref, path::Path, sync::Once};

use anyhow::{Result, ensure};

use crate::{
    inventory::{self, Claim},
    netns::Netns,
    plan,
};

/// A network namespace with its loopback up, removed when this is dropped.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// let (pod, peer) = (lab::Place::new("pod")?, lab::Place::new("peer")?);
/// pod.cable("eth0", &peer)?;
/// pod.ip("addr add 10.30.0.2/24 dev eth0\nlink set eth0 up\n")?;
/// peer.ip("addr add 10.30.0.1/24 dev eth0\nlink set eth0 up\n")?;
/// pod.exec(["ping", "-c", "1", "10.30.0.1"])?.success()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Place {
    netns: Netns,
    /// Given back on drop.
    claim: Claim,
}

impl Place {
    /// Makes one; `role` is part of its name, for whoever looks at `ip netns`.
    pub fn new(role: &str) -> Result<Self> {
        ensure!(
            nix::unistd::Uid::effective().is_root(),
            "a network namespace is made here: run it as root"
        );
        static CLEAN: Once = Once::new();
        let mut cleaned = Ok(());
        CLEAN.call_once(|| cleaned = inventory::clean(false).map(drop));
        cleaned?;
        let claim = Claim::take(None)?;
        let netns = Netns::create(&plan::netns(&claim.id, role))?;
        Ok(Self { netns, claim })
    }

    /// A directory of its own, gone with it.
    pub fn dir(&self) -> &Path {
        &self.claim.dir
    }
}

impl Deref for Place {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}
