//! The node's side of probes: what the kubelet opens to an enrolled pod gets a source address that the
//! pod's rules let pass, so that probes work where plain text is refused.
//!
//! The whole table is rendered ([`table`]) from the set of enrolled pods and from what the kubelet is
//! recognised by, and loaded in one piece; who changed the set can wait until that has happened.
//! Without a sign of the kubelet the node is left alone.
//!
//! After a restart of the agent the first set may be incomplete (a pod whose address is not known yet):
//! until [`Host::complete`] nothing is taken out of the kernel's, or a pod's probes would fail meanwhile.

mod table;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kubelet::Sign;
use super::netns::Netns;
use super::nft::{Nft, NftError};
use super::pod::Uid;
use crate::rules::Probes;
use table::{Kubelet, Table};

/// Enrolled pods by address.
type Pods = BTreeMap<IpAddr, Uid>;

/// The set of enrolled pods on the node. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    wanted: watch::Sender<Wanted>,
    /// What the kernel was told last, whether it took it or not.
    loaded: watch::Receiver<u64>,
    sign: watch::Receiver<Sign>,
    kernel: Kernel,
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    version: u64,
    pods: Pods,
    /// Whether what is not among them is to go.
    complete: bool,
}

/// Where the rules go.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) nft: Nft,
    /// The node's network namespace, where it is not ours.
    pub(crate) netns: Option<Arc<Netns>>,
    /// The node's `/proc`, by whose first process its cgroups are found.
    pub(crate) proc: PathBuf,
    pub(crate) probes: Probes,
    pub(crate) v6: bool,
}

impl Host {
    /// Starts to keep the node's table, until `stop`. The table stays.
    pub(crate) fn start(
        kernel: Kernel,
        sign: watch::Receiver<Sign>,
        stop: CancellationToken,
    ) -> Self {
        let (wanted, changes) = watch::channel(Wanted::default());
        let (report, loaded) = watch::channel(0);
        let told = (changes, sign.clone());
        tokio::spawn(keep(kernel.clone(), told, report, LOOK, stop));
        Self {
            wanted,
            loaded,
            sign,
            kernel,
        }
    }

    /// Makes known the pods that were enrolled before; without `complete` there may be others.
    pub(crate) fn restore(&self, pods: impl Iterator<Item = (IpAddr, Uid)>, complete: bool) {
        self.wanted.send_modify(|wanted| {
            wanted.pods.extend(pods);
            wanted.complete = complete;
            wanted.version += 1;
        });
    }

    /// Every pod that was enrolled before has been looked at: what else is in the kernel's set goes.
    pub(crate) fn complete(&self) {
        self.wanted.send_if_modified(|wanted| {
            let news = !std::mem::replace(&mut wanted.complete, true);
            wanted.version += u64::from(news);
            news
        });
    }

    /// Adds a pod and waits until the kernel knows. Addresses that it had in an earlier sandbox are its no longer: by now they may be
    /// those of a pod that is not in the mesh.
    pub(crate) async fn add(&self, uid: &Uid, ips: &[IpAddr]) {
        self.change(|pods| {
            pods.retain(|ip, owner| owner != uid || ips.contains(ip));
            pods.extend(ips.iter().map(|ip| (*ip, uid.clone())));
        })
        .await;
    }

    /// Removes a pod and waits until the kernel knows.
    pub(crate) async fn remove(&self, uid: &Uid) {
        self.change(|pods| pods.retain(|_, owner| owner != uid))
            .await;
    }

    /// Takes everything of ours off the node. To be called when nothing changes any more.
    pub(crate) async fn clear(&self) -> Result<(), NftError> {
        if *self.sign.borrow() == Sign::None {
            return Ok(());
        }
        let netns = self.kernel.netns.as_ref();
        self.kernel.nft.load(netns, table::absent()).await
    }

    async fn change(&self, change: impl FnOnce(&mut Pods)) {
        let mut version = 0;
        let changed = self.wanted.send_if_modified(|wanted| {
            let before = wanted.pods.clone();
            change(&mut wanted.pods);
            let changed = wanted.pods != before;
            wanted.version += u64::from(changed);
            version = wanted.version;
            changed
        });
        if changed && *self.sign.borrow() != Sign::None {
            let mut loaded = self.loaded.clone();
            // A kernel that refuses is reported where it happens; the pod is enrolled all the same.
            let _ = tokio::time::timeout(PATIENCE, loaded.wait_for(|done| *done >= version)).await;
        }
    }
}

async fn keep(
    kernel: Kernel,
    (mut changes, mut sign): (watch::Receiver<Wanted>, watch::Receiver<Sign>),
    report: watch::Sender<u64>,
    look: Duration,
    stop: CancellationToken,
) {
    // How often it has failed since it last went well, and why.
    let (mut failures, mut said) = (0_u32, String::new());
    loop {
        let changed = async {
            tokio::select! {
                changed = changes.changed() => changed.map(|()| true),
                Ok(()) = sign.changed() => Ok(true),
                () = tokio::time::sleep(pause(failures)), if failures > 0 => Ok(true),
                () = tokio::time::sleep(look), if failures == 0 => Ok(false),
            }
        };
        let is_news = tokio::select! {
            () = stop.cancelled() => return,
            changed = changed => match changed {
                Ok(is_news) => is_news,
                Err(_) => return,
            },
        };
        if !is_news {
            let is_without = *sign.borrow() == Sign::None || changes.borrow().version == 0;
            if is_without || !kernel.lost_its_tables().await {
                continue;
            }
            if stop.is_cancelled() {
                return; // they are gone for good
            }
            tracing::warn!(
                "the node's probe rules are gone (nft flush ruleset?), they are loaded again"
            );
        }
        let (wanted, sign) = (changes.borrow_and_update().clone(), sign.borrow().clone());
        match kernel.load(&wanted, sign).await {
            Ok(()) => (failures, said) = (0, String::new()),
            Err(error) => {
                failures = failures.saturating_add(1);
                let error = error.to_string();
                if said != error {
                    tracing::error!(
                        %error,
                        "the node's probe rules could not be loaded, trying again"
                    );
                    said = error;
                }
            }
        }
        // Also of what was refused: whoever waited for it would wait longer than a runtime does for its pod, each time.
        report.send_replace(wanted.version);
    }
}

/// 1 s, 2 s, 4 s … 32 s: without its rules a pod's probes fail where plain text is refused, and nothing else may happen on
/// this node for hours.
fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5))
}

impl Kernel {
    /// Whether somebody has taken them away, as a firewall of the node's does that begins with nothing. Pods that fail their
    /// probes are restarted in the sandbox that they have, so nothing else would bring them back.
    async fn lost_its_tables(&self) -> bool {
        for script in table::listed() {
            let listed = self.nft.load(self.netns.as_ref(), script).await;
            if matches!(listed, Err(NftError::Refused(_))) {
                return true;
            }
        }
        false
    }

    async fn load(&self, wanted: &Wanted, sign: Sign) -> Result<(), NftError> {
        let table = |kubelet, complete| {
            Table {
                pods: &wanted.pods,
                kubelet,
                probes: self.probes,
                v6: self.v6,
                complete,
            }
            .script()
        };
        let (kubelet, user) = match &sign {
            Sign::None => return Ok(()),
            Sign::User(uid) => (Kubelet::User(*uid), None),
            Sign::Cgroup(cgroup, user) => (Kubelet::Cgroup(cgroup), *user),
        };
        let netns = self.netns.as_ref();
        if let Kubelet::Cgroup(_) = kubelet {
            let script = table(kubelet, wanted.complete);
            match (
                self.nft.load_by_cgroup(netns, &self.proc, script).await,
                user,
            ) {
                (Ok(()), _) => return Ok(()),
                (Err(error), None) => return Err(error),
                (Err(error), Some(uid)) => {
                    tracing::warn!(%error, uid, "the kubelet cannot be recognised by its cgroup, so it is by its user: whatever else this user runs on the node reaches enrolled pods without a policy");
                    return self.nft.load(netns, table(Kubelet::User(uid), true)).await;
                }
            }
        }
        match self.nft.load(netns, table(kubelet, wanted.complete)).await {
            // What an agent of another version left cannot be added to.
            Err(NftError::Refused(_)) if !wanted.complete => {
                self.nft.load(netns, table(kubelet, true)).await
            }
            other => other,
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(6);
/// Between two looks whether the tables are still there.
const LOOK: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};

    use super::*;

    /// Of this network, with that in the place of nft.
    fn kernel(nft: impl Into<PathBuf>) -> Kernel {
        Kernel {
            nft: Nft::new(nft.into()),
            netns: None,
            proc: "/proc".into(),
            probes: Probes::default(),
            v6: true,
        }
    }

    fn write_program(at: &Path, text: &str) {
        std::fs::write(at, text).unwrap();
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn what_could_not_be_loaded_is_tried_again_though_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (nft, loaded) = (dir.path().join("nft"), dir.path().join("loaded"));
        // It fails once.
        let program = format!(
            "#!/bin/sh\nif [ ! -e {0}.asked ]; then touch {0}.asked; exit 1; fi\ncat > {0}.new && mv {0}.new {0}\n",
            loaded.display()
        );
        write_program(&nft, &program);
        let (_sign, sign) = watch::channel(Sign::User(0));
        let kernel = kernel(nft);
        let host = Host::start(kernel, sign, CancellationToken::new());
        let web = ("10.0.0.1".parse().unwrap(), Uid::new("web"));
        host.restore([web].into_iter(), true);
        let read = async {
            loop {
                if let Ok(script) = std::fs::read_to_string(&loaded) {
                    return script;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let script = tokio::time::timeout(Duration::from_secs(60), read).await;
        let script = script.expect("it was not tried again");
        assert!(script.contains("10.0.0.1"), "{script}");
    }

    #[tokio::test]
    async fn nobody_waits_for_rules_that_the_kernel_does_not_take() {
        let (_sign, sign) = watch::channel(Sign::User(0));
        let kernel = kernel("/nowhere/nft");
        let host = Host::start(kernel, sign, CancellationToken::new());
        host.add(&Uid::new("web"), &["10.0.0.1".parse().unwrap()])
            .await;
        let mut loaded = host.loaded.clone();
        let told = loaded.wait_for(|done| *done > 0);
        let told = tokio::time::timeout(Duration::from_secs(60), told).await;
        drop(told.expect("who waits is not told").unwrap());
    }

    #[tokio::test]
    async fn a_pod_in_a_new_sandbox_keeps_no_address_of_the_old_one() {
        let (_sign, sign) = watch::channel(Sign::None);
        let kernel = kernel("nft");
        let host = Host::start(kernel, sign, CancellationToken::new());
        let ips = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let (web, db) = (Uid::new("web"), Uid::new("db"));
        host.add(&web, &ips(&["10.0.0.1", "fd00::1"])).await;
        host.add(&db, &ips(&["10.0.0.2"])).await;
        host.add(&web, &ips(&["10.0.0.3", "fd00::1"])).await;
        // The other's address of before: it is the last one's that came with it.
        host.add(&db, &ips(&["10.0.0.1"])).await;
        let known: Vec<String> = {
            let wanted = host.wanted.borrow();
            let pods = wanted.pods.iter();
            pods.map(|(ip, uid)| format!("{ip} {uid}")).collect()
        };
        assert_eq!(known, ["10.0.0.1 db", "10.0.0.3 web", "fd00::1 web"]);
    }

    #[tokio::test]
    async fn rules_that_somebody_took_away_are_loaded_again_though_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (nft, loaded) = (dir.path().join("nft"), dir.path().join("loaded"));
        // What is loaded is in a file; to list what is not there fails.
        let program = format!(
            "#!/bin/sh\ns=$(cat)\ncase \"$s\" in\n\"list table inet \"*) [ -e {0} ] ;;\n*) printf %s \"$s\" > {0}.new && mv {0}.new {0} ;;\nesac\n",
            loaded.display()
        );
        write_program(&nft, &program);
        let kernel = kernel(nft);
        let ((wanted, changes), (_sign, sign)) = (
            watch::channel(Wanted::default()),
            watch::channel(Sign::User(0)),
        );
        let (report, _loaded) = watch::channel(0);
        let stop = CancellationToken::new();
        let look = Duration::from_millis(20);
        tokio::spawn(keep(kernel, (changes, sign), report, look, stop));
        wanted.send_modify(|wanted| {
            wanted.complete = true;
            wanted.version += 1;
        });
        for round in ["at first", "after they were taken away"] {
            let there = async {
                while !loaded.exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let there = tokio::time::timeout(Duration::from_secs(60), there).await;
            there.expect(round);
            std::fs::remove_file(&loaded).unwrap();
        }
    }
}
