//! What the operator asks for: one struct, each flag with its environment variable.
//!
//! Names are those that the mesh's other proxy reads, so that charts and habits fit. Each default says why it is what it
//! is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hbone::CertificatesConfig;
use hbone::control_plane::{DEFAULT_ADDRESS, address};
use ops::series::{Bounds, Without};

/// The layer 7 proxy of the mesh.
#[derive(Debug, Clone, Parser)]
#[command(name = "waypoint", version)]
pub struct Config {
    /// Control plane for discovery. https unless the address says `http://` (for tests only).
    #[arg(long, env = "XDS_ADDRESS", default_value = DEFAULT_ADDRESS, value_parser = address)]
    pub xds_address: String,
    /// Root certificates for discovery: a PEM file, read again for each connection.
    #[arg(long, env = "XDS_ROOT_CA", default_value = DEFAULT_ROOT, value_parser = root)]
    pub xds_root_ca: PathBuf,
    /// Certificate authority; by default the control plane itself.
    #[arg(long, env = "CA_ADDRESS", value_parser = address)]
    pub ca_address: Option<String>,
    /// Root certificates for the authority; by default those for discovery.
    #[arg(long, env = "CA_ROOT_CA", value_parser = root)]
    pub ca_root_ca: Option<PathBuf>,
    /// Revoked certificates: a PEM file of lists, read again when it changes. Not there: nobody was revoked.
    #[arg(long, env = "CRL_PATH")]
    pub crl_path: Option<PathBuf>,
    /// Service account token, read again at each call because kubelet renews it. Empty: none.
    #[arg(
        long,
        env = "AUTH_TOKEN",
        default_value = "/var/run/secrets/tokens/istio-token"
    )]
    pub auth_token: PathBuf,
    /// Name of the Gateway that this is a pod of; its namespace is the pod's.
    #[arg(long, env = "GATEWAY_NAME", default_value = "waypoint")]
    pub gateway_name: String,
    /// The cluster: metric label and gRPC metadata `clusterid`.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// DNS suffix of services; kubelet's own default.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Trust domain of our own identity.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The names of a mesh that has several, with commas between them: trust domains whose members are each other's. Empty: only
    /// those of our own are believed.
    #[arg(long, env = "AMBIT_TRUST_DOMAINS", value_delimiter = ',')]
    pub trust_domains: Vec<String>,
    /// Network this pod is in. Empty is the network of meshes that have only one.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Kubernetes node, for locality.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Own pod, its namespace, addresses and service account.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// See `POD_NAME`.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,
    /// See `POD_NAME`. Several addresses are joined by commas.
    #[arg(long, env = "INSTANCE_IP", default_value = "127.0.0.1")]
    pub instance_ip: String,
    /// See `POD_NAME`.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "waypoint")]
    pub service_account: String,

    /// How long certificates are asked for: a day, renewed at half life.
    #[arg(long, env = "SECRET_TTL", default_value = "86400s", value_parser = duration)]
    pub secret_ttl: Duration,
    /// How long the first bytes of a connection are waited for where nothing says what is spoken; then it is a server
    /// that speaks first.
    #[arg(long, env = "AMBIT_DETECT_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub detect_timeout: Duration,

    /// HBONE connections at a time. More are not accepted until one ends. One client has half of them at most: it is cut off
    /// beyond.
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
    /// Connections of clients' apps at a time, within those; half of them for one client at most. More are refused with
    /// 503. Each costs some kilobytes while it is idle.
    #[arg(long, env = "AMBIT_MAX_TUNNELS", default_value_t = 50_000)]
    pub max_tunnels: usize,
    /// Requests at a time, half of them of one client at most. More are answered with 503 at once, which is kinder than
    /// all being late.
    #[arg(long, env = "AMBIT_MAX_REQUESTS", default_value_t = 20_000)]
    pub max_requests: usize,
    /// Bytes of memory beyond which new requests are answered with 503: nine tenths of the container's limit if not
    /// said, and no bound without a limit.
    #[arg(long, env = "AMBIT_MAX_MEMORY")]
    pub max_memory: Option<u64>,

    /// What kubelet waits between SIGTERM and SIGKILL; connections drain within it.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", default_value_t = 30)]
    pub termination_grace_seconds: u64,
    /// Threads that carry traffic. Unset: one for each core that we may use.
    #[arg(long, env = "AMBIT_WORKER_THREADS")]
    pub worker_threads: Option<usize>,

    /// Log filter: a level and `module=level` pairs.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// Log format: plain or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "plain")]
    pub log_format: ops::log::Format,
    /// Where tunnels arrive.
    #[arg(long, env = "AMBIT_HBONE_ADDRESS", default_value = "[::]:15008")]
    pub hbone_address: SocketAddr,
    /// Port of the admin door, on localhost only.
    #[arg(long, env = "AMBIT_ADMIN_PORT", default_value_t = 15000)]
    pub admin_port: u16,
    /// Series of metrics that are counted apart; what is more falls together in a few whose labels are `overflow`. One takes
    /// about a kilobyte here, and sixty where it is scraped.
    #[arg(long, env = "AMBIT_METRICS_MOST", default_value_t = Bounds::default().most)]
    pub metrics_most: usize,
    /// How long a series stays that nobody uses, after a workload or service that it names is gone. When it comes again it
    /// starts from zero. As long as rules that look back over some minutes need it.
    #[arg(long, env = "AMBIT_METRICS_EXPIRY", default_value = "15m", value_parser = duration)]
    pub metrics_expiry: Duration,
    /// Labels of metrics that are left out, with commas between them; series that nothing else tells apart are one.
    #[arg(long, env = "AMBIT_METRICS_WITHOUT", default_value = "", value_parser = Without::parse)]
    pub metrics_without: Without,
    /// Where metrics are scraped.
    #[arg(long, env = "AMBIT_STATS_ADDRESS", default_value = "[::]:15020")]
    pub stats_address: SocketAddr,
    /// Where kubelet asks whether we are ready.
    #[arg(long, env = "AMBIT_READINESS_ADDRESS", default_value = "[::]:15021")]
    pub readiness_address: SocketAddr,

    /// `proxy waypoint`, as Istio's deployments call it, or `proxy east-west`: tunnels from other networks are led on to
    /// workloads of ours, and nothing else is done.
    #[arg(hide = true, num_args = 0..)]
    pub role: Vec<String>,
}

impl Config {
    /// The command line and environment of this process.
    pub fn from_process() -> Self {
        Self::parse()
    }

    /// How much is counted apart.
    pub fn metrics(&self) -> Bounds {
        Bounds {
            most: self.metrics_most,
            expiry: self.metrics_expiry,
        }
    }

    /// Certificates, as the operator wants them believed.
    pub fn certificates(&self) -> CertificatesConfig {
        let named = |name: &&String| !name.is_empty();
        CertificatesConfig {
            trust_domain_aliases: self.trust_domains.iter().filter(named).cloned().collect(),
            ..CertificatesConfig::default()
        }
    }

    /// Whether it is the gateway of a network, and no waypoint.
    pub fn is_east_west(&self) -> bool {
        self.role.iter().any(|word| word == "east-west")
    }

    /// The authority's address: the control plane's unless set.
    pub fn ca_address(&self) -> &str {
        self.ca_address.as_deref().unwrap_or(&self.xds_address)
    }

    /// The authority's roots: discovery's unless set.
    pub fn ca_root_ca(&self) -> &PathBuf {
        self.ca_root_ca.as_ref().unwrap_or(&self.xds_root_ca)
    }

    /// Our own addresses; unreadable ones are left out.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let all = self.instance_ip.split(',');
        all.filter_map(|ip| ip.trim().parse().ok()).collect()
    }

    /// The first of our own addresses.
    pub fn own_ip(&self) -> IpAddr {
        let first = self.own_addresses().into_iter().next();
        first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// How long open connections may go on after SIGTERM: what kubelet's grace period leaves when we keep some seconds
    /// for reports and a clean exit.
    pub fn drain_deadline(&self) -> Duration {
        let grace = self.termination_grace_seconds;
        Duration::from_secs(grace.saturating_sub(if grace <= 10 { 1 } else { 5 }))
    }
}

fn root(text: &str) -> Result<PathBuf, String> {
    Ok(if text.is_empty() { DEFAULT_ROOT } else { text }.into())
}

/// `90`, `90s`, `1500ms`, `5m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    ops::time::duration(text).ok_or_else(|| format!("{text:?} is not a duration such as 90s"))
}

const DEFAULT_ROOT: &str = "/var/run/secrets/istio/root-cert.pem";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_deployment_says_is_understood() {
        let config = Config::try_parse_from(["waypoint", "proxy", "waypoint"]).unwrap();
        assert_eq!(config.xds_address, DEFAULT_ADDRESS);
        assert_eq!(config.drain_deadline(), Duration::from_secs(25));
        assert!(!config.is_east_west());
        let gateway = Config::try_parse_from(["waypoint", "proxy", "east-west"]).unwrap();
        assert!(gateway.is_east_west());
    }

    #[test]
    fn peers_of_every_name_of_the_mesh_are_believed() {
        let believed = |arguments: &str| {
            let arguments = arguments.split_whitespace();
            let config = Config::try_parse_from(arguments).unwrap();
            config.certificates().trust_domain_aliases
        };
        assert!(believed("waypoint").is_empty());
        assert!(believed("waypoint --trust-domains=").is_empty());
        let two = believed("waypoint proxy east-west --trust-domains new.org,old.org");
        assert_eq!(two, ["new.org", "old.org"]);
    }
}
