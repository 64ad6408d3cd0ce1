//! The agent's settings. Environment names are Istio's where it has one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::install::Files;
use crate::rules::Probes;
use crate::site::Site;

/// Settings of the node agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Directory with the Pods and Namespaces, in place of the Kubernetes API. Nothing is installed
    /// on the host then.
    #[arg(long, env = "CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// The node whose pods are ours (`spec.nodeName`).
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The node, as the plugin must know it too.
    #[command(flatten)]
    pub site: Site,
    /// Where the plugin goes.
    #[command(flatten)]
    pub files: Files,
    /// What is remembered over a restart of the agent but should not outlive the node's boot.
    /// Default: `state` in the directory of the sockets.
    #[arg(long, env = "CNI_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// The socket on which ztunnel connects.
    #[arg(
        long,
        env = "ZTUNNEL_UDS_ADDRESS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    pub ztunnel_socket: PathBuf,
    /// `/metrics`.
    #[arg(long, env = "METRICS_ADDRESS", default_value = "[::]:15014")]
    pub metrics_address: SocketAddr,
    /// `/readyz`.
    #[arg(long, env = "READINESS_ADDRESS", default_value = "[::]:8000")]
    pub readiness_address: SocketAddr,
    /// Capture DNS, so that mesh names resolve; pods may say otherwise by annotation.
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// Let pods say by annotation what of them is not captured (`traffic.sidecar.istio.io/excludeOutboundPorts` and so on).
    #[arg(long, env = "AMBIT_CAPTURE_EXCLUSIONS", default_value_t = true, action = clap::ArgAction::Set)]
    pub capture_exclusions: bool,
    /// Capture IPv6 in the pods that have it.
    #[arg(long, env = "AMBIENT_IPV6", default_value_t = true, action = clap::ArgAction::Set)]
    pub ipv6: bool,
    /// Write the rules of enrolled pods again when the agent starts: they may have been lost, and
    /// another version may write others.
    #[arg(long, env = "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", default_value_t = true, action = clap::ArgAction::Set)]
    pub reconcile_rules: bool,
    /// How the kubelet is recognised, whose connections to enrolled pods are probes and pass ztunnel by.
    /// Default: `auto` on Kubernetes, `none` beside a directory, `uid` where a uid is given.
    #[arg(long, env = "KUBELET_BY", value_enum)]
    pub kubelet_by: Option<KubeletBy>,
    /// Uid of the kubelet. Default: that of the process found.
    #[arg(long, env = "KUBELET_UID")]
    pub kubelet_uid: Option<u32>,
    /// Write the node's own rules in the node's network namespace, where that is not the agent's.
    #[arg(long, env = "ALLOW_SWITCH_TO_HOST_NS", default_value_t = true, action = clap::ArgAction::Set)]
    pub switch_to_host_netns: bool,
    /// The address that stands for the kubelet inside pods.
    #[arg(long, env = "HOST_PROBE_SNAT_IP", default_value_t = Probes::default().v4)]
    pub host_probe_snat_ip: Ipv4Addr,
    /// The same in IPv6.
    #[arg(long, env = "HOST_PROBE_SNAT_IPV6", default_value_t = Probes::default().v6)]
    pub host_probe_snat_ipv6: Ipv6Addr,
    /// The nft to use: the agent's own, never the host's.
    #[arg(long, env = "NFT", default_value = "nft")]
    pub nft: PathBuf,
    /// Seconds between the news that a pod leaves the mesh and the end of its redirects, so that its
    /// peers stop tunnelling first.
    #[arg(long, env = "RELEASE_PAUSE", default_value = "1", value_parser = seconds)]
    pub release_pause: Duration,
    /// Seconds that connections of a pod that leaves the mesh may go on through ztunnel.
    #[arg(long, env = "RELEASE_DRAIN", default_value = "30", value_parser = seconds)]
    pub release_drain: Duration,
    /// The DaemonSet that runs this agent. If it is being deleted when the agent is told to stop, the
    /// agent takes everything of the mesh off its node; otherwise everything stays.
    #[arg(long, env = "DAEMONSET_NAME", default_value = "istio-cni-node")]
    pub daemonset: String,
    /// Seconds in which all pods of the node are let go when the mesh is uninstalled. Must be below the
    /// pod's termination grace period.
    #[arg(long, env = "UNINSTALL_DEADLINE", default_value = "20", value_parser = seconds)]
    pub uninstall_deadline: Duration,
}

/// By what connections of the kubelet are told from those of everything else on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KubeletBy {
    /// By its cgroup where it has one of its own, otherwise by its user.
    Auto,
    /// By its cgroup (version 2), and not at all where it has none of its own.
    Cgroup,
    /// By its user: everything else that this user runs on the node passes ztunnel by as well.
    Uid,
    /// Not at all: probes count as plain text, and fail where plain text is refused.
    None,
}

impl Config {
    pub(crate) fn probes(&self) -> Probes {
        Probes {
            v4: self.host_probe_snat_ip,
            v6: self.host_probe_snat_ipv6,
        }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir
            .clone()
            .unwrap_or_else(|| self.site.cni_run_dir.join("state"))
    }

    pub(crate) fn kubelet_by(&self) -> KubeletBy {
        let default = match (self.kubelet_uid, &self.config_dir) {
            (Some(_), _) => KubeletBy::Uid,
            (None, Some(_)) => KubeletBy::None,
            (None, None) => KubeletBy::Auto,
        };
        self.kubelet_by.unwrap_or(default)
    }

    /// The host's `/proc`.
    pub(crate) fn proc(&self) -> PathBuf {
        self.site.on_host("/proc")
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
