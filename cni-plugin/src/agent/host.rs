//! The node's side of probes: what the kubelet opens to an enrolled pod gets a source address that the pod's
//! rules let pass, so that probes work where plain text is refused.
//!
//! The whole table is rendered from the set of enrolled pods and loaded in one piece; who
//! changed the set can wait until that has happened. Without the kubelet's uid there is
//! nothing to recognise it by, and the node is left alone.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::nft::Nft;
use super::pod::Uid;
use crate::rules::Probes;

/// Enrolled pods by address.
type Pods = BTreeMap<IpAddr, Uid>;

/// The set of enrolled pods on the node. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    wanted: Option<watch::Sender<(u64, Pods)>>,
    loaded: watch::Receiver<u64>,
}

impl Host {
    /// Starts to keep the node's table; at `stop` it is taken away, as the pods' tables are not.
    /// The second value ends then.
    pub(crate) fn start(
        kubelet: Option<u32>,
        probes: Probes,
        v6: bool,
        nft: Nft,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (report, loaded) = watch::channel(0);
        let Some(kubelet) = kubelet else {
            tracing::info!(
                "no kubelet uid is set: probes are not told from other plain text, no rule on the node"
            );
            return (
                Self {
                    wanted: None,
                    loaded,
                },
                tokio::spawn(async {}),
            );
        };
        let (wanted, changes) = watch::channel((0, Pods::new()));
        let render = move |pods: &Pods| table(pods, kubelet, probes, v6);
        let task = tokio::spawn(keep(changes, report, render, nft, stop));
        (
            Self {
                wanted: Some(wanted),
                loaded,
            },
            task,
        )
    }

    /// Adds a pod and waits until the kernel knows.
    pub(crate) async fn add(&self, uid: &Uid, ips: &[IpAddr]) {
        self.change(|pods| pods.extend(ips.iter().map(|ip| (*ip, uid.clone()))))
            .await;
    }

    /// Removes a pod and waits until the kernel knows.
    pub(crate) async fn remove(&self, uid: &Uid) {
        self.change(|pods| pods.retain(|_, owner| owner != uid))
            .await;
    }

    async fn change(&self, change: impl FnOnce(&mut Pods)) {
        let Some(wanted) = &self.wanted else { return };
        let mut version = 0;
        let changed = wanted.send_if_modified(|(latest, pods)| {
            let before = pods.clone();
            change(pods);
            let changed = *pods != before;
            *latest += u64::from(changed);
            version = *latest;
            changed
        });
        if changed {
            let mut loaded = self.loaded.clone();
            // A kernel that refuses is reported where it happens; the pod is enrolled all the same.
            let _ = tokio::time::timeout(PATIENCE, loaded.wait_for(|done| *done >= version)).await;
        }
    }
}

async fn keep(
    mut changes: watch::Receiver<(u64, Pods)>,
    report: watch::Sender<u64>,
    render: impl Fn(&Pods) -> String,
    nft: Nft,
    stop: CancellationToken,
) {
    changes.mark_changed(); // the empty table too: it replaces what an earlier life left behind
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
        }
        let (version, script) = {
            let wanted = changes.borrow_and_update();
            (wanted.0, render(&wanted.1))
        };
        match nft.load(None, script).await {
            Ok(()) => drop(report.send(version)),
            Err(error) => tracing::error!(%error, "the node's probe rules could not be loaded"),
        }
    }
    if let Err(error) = nft.load(None, absent()).await {
        tracing::warn!(%error, "the node's probe rules could not be removed");
    }
}

fn table(pods: &Pods, kubelet: u32, probes: Probes, v6: bool) -> String {
    let mut script = absent();
    let _ = writeln!(script, "table inet {TABLE} {{");
    let families = [
        ("v4", "ipv4_addr", "ip", IpAddr::from(probes.v4)),
        ("v6", "ipv6_addr", "ip6", IpAddr::from(probes.v6)),
    ];
    let families = &families[..if v6 { 2 } else { 1 }];
    for (suffix, kind, _, probe) in families {
        let _ = writeln!(
            script,
            "\tset istio-inpod-probes-{suffix} {{\n\t\ttype {kind}"
        );
        let _ = writeln!(
            script,
            "\t\tcomment \"UUID of the pods that are part of ambient mesh\""
        );
        let members = pods
            .iter()
            .filter(|(ip, _)| ip.is_ipv4() == probe.is_ipv4());
        let members: Vec<_> = members
            .map(|(ip, uid)| format!("{ip} comment \"{}\"", plain(uid)))
            .collect();
        if !members.is_empty() {
            let _ = writeln!(script, "\t\telements = {{ {} }}", members.join(", "));
        }
        let _ = writeln!(script, "\t}}");
    }
    let _ = writeln!(
        script,
        "\tchain postrouting {{\n\t\ttype nat hook postrouting priority srcnat; policy accept;"
    );
    for (suffix, _, keyword, probe) in families {
        let _ = writeln!(
            script,
            "\t\tmeta l4proto tcp meta skuid {kubelet} {keyword} daddr @istio-inpod-probes-{suffix} counter snat {keyword} to {probe}"
        );
    }
    let _ = writeln!(script, "\t}}\n}}");
    script
}

fn absent() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// A uid comes from a file a user wrote; in a script it is a quoted text of at most 128 bytes.
fn plain(uid: &Uid) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '/') {
            c
        } else {
            '_'
        }
    };
    uid.as_str().chars().take(100).map(safe).collect()
}

const TABLE: &str = "istio-ambient-nat";
const PATIENCE: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_pods_by_family() {
        let pods = [
            ("10.30.0.1", "u-1"),
            ("fd00:30::2", "u-2"),
            ("10.30.0.2", "u\"; flush ruleset"),
        ]
        .map(|(ip, uid)| (ip.parse().unwrap(), Uid::new(uid)))
        .into();
        insta::assert_snapshot!(table(&pods, 0, Probes::default(), true), @r#"
table inet istio-ambient-nat
delete table inet istio-ambient-nat
table inet istio-ambient-nat {
	set istio-inpod-probes-v4 {
		type ipv4_addr
		comment "UUID of the pods that are part of ambient mesh"
		elements = { 10.30.0.1 comment "u-1", 10.30.0.2 comment "u___flush_ruleset" }
	}
	set istio-inpod-probes-v6 {
		type ipv6_addr
		comment "UUID of the pods that are part of ambient mesh"
		elements = { fd00:30::2 comment "u-2" }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta l4proto tcp meta skuid 0 ip daddr @istio-inpod-probes-v4 counter snat ip to 169.254.7.127
		meta l4proto tcp meta skuid 0 ip6 daddr @istio-inpod-probes-v6 counter snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff
	}
}
"#);
    }

    #[test]
    fn without_ipv6_there_is_no_set_for_it() {
        let pods = [("fd00:30::2".parse().unwrap(), Uid::new("u"))].into();
        let script = table(&pods, 0, Probes::default(), false);
        assert!(
            !script.contains("ip6") && !script.contains("fd00"),
            "{script}"
        );
    }
}
