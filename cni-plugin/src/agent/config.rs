//! The agent's settings. Environment names are Istio's where it has one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::eligible::Selector;
use crate::rules::Probes;

/// Settings of the node agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Directory with the Pods and Namespaces, which stands in for the Kubernetes API.
    #[arg(long, env = "CONFIG_DIR")]
    pub config_dir: PathBuf,
    /// The node whose pods are ours (`spec.nodeName`).
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where the sockets for the plugin are made.
    #[arg(long, env = "CNI_RUN_DIR", default_value = "/var/run/istio-cni")]
    pub cni_run_dir: PathBuf,
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
    /// Capture IPv6 in the pods that have it.
    #[arg(long, env = "AMBIENT_IPV6", default_value_t = true, action = clap::ArgAction::Set)]
    pub ipv6: bool,
    /// Namespaces whose pods are never enrolled.
    #[arg(
        long,
        env = "EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// JSON list of `{podSelector, namespaceSelector}`: which pods are in the mesh. Default: Istio's,
    /// by label `istio.io/dataplane-mode`.
    #[arg(long, env = "AMBIENT_ENABLEMENT_SELECTOR", value_parser = selectors)]
    pub enablement_selector: Option<Selectors>,
    /// Uid of the kubelet: its connections to enrolled pods are probes and pass ztunnel by. Without
    /// it nothing is changed on the node, and probes count as plain text.
    #[arg(long, env = "KUBELET_UID")]
    pub kubelet_uid: Option<u32>,
    /// The address that stands for the kubelet inside pods.
    #[arg(long, env = "HOST_PROBE_SNAT_IP", default_value_t = Probes::default().v4)]
    pub host_probe_snat_ip: Ipv4Addr,
    /// The same in IPv6.
    #[arg(long, env = "HOST_PROBE_SNAT_IPV6", default_value_t = Probes::default().v6)]
    pub host_probe_snat_ipv6: Ipv6Addr,
    /// Put before the paths of network namespaces that the plugin names, where the host's root is
    /// mounted elsewhere.
    #[arg(long, env = "HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,
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
}

/// Wraps the list, which clap would take for several values otherwise.
#[derive(Clone, Debug)]
pub struct Selectors(pub Vec<Selector>);

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
            .unwrap_or_else(|| self.cni_run_dir.join("state"))
    }

    pub(crate) fn selectors(&self) -> Vec<Selector> {
        self.enablement_selector
            .clone()
            .map_or_else(Selector::defaults, |Selectors(list)| list)
    }

    /// A path as the host knows it, as this process can open it.
    pub(crate) fn on_host(&self, path: &str) -> PathBuf {
        self.host_root.join(path.trim_start_matches('/'))
    }
}

fn selectors(text: &str) -> Result<Selectors, serde_json::Error> {
    serde_json::from_str(text).map(Selectors)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
