//! What the operator asks for: one struct, each flag with its environment variable.
//!
//! Names are those Istio's ztunnel reads, so that its chart and people's habits fit; the few of
//! ours begin with `AMBIT_`. Each default says why it is what it is.

mod values;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Parser};
use hbone::ca::TokenSource;
use hbone::control_plane::{DEFAULT_ADDRESS, Dialler, Membership, address, token_source};
use hbone::{CertificatesConfig, Engine, Limits, PoolConfig};
use ops::series::{Bounds, Without};
use tokio::sync::watch;

use values::{DEFAULT_ROOT, count, duration, engine, filled, number, path, root, workload};
pub use values::{Mode, Workers, WorkloadInfo, engine_name};

use crate::dedicated::apps::Probers;

/// The node proxy of the mesh.
#[derive(Debug, Clone, Parser)]
#[command(name = "ztunnel", version)]
pub struct Config {
    /// Control plane for discovery. https unless the address says `http://` (for tests only).
    #[arg(long, env = "XDS_ADDRESS", default_value = DEFAULT_ADDRESS, value_parser = address)]
    pub xds_address: String,
    /// Root certificates for discovery: a PEM file, read again when it changes, or SYSTEM.
    #[arg(long, env = "XDS_ROOT_CA", default_value = DEFAULT_ROOT, value_parser = root)]
    pub xds_root_ca: PathBuf,
    /// Name to expect in the certificate of the discovery server instead of the one dialled.
    #[arg(long, env = "ALT_XDS_HOSTNAME", value_parser = filled)]
    pub alt_xds_hostname: Option<String>,
    /// Follow nothing but policies and this node's own workloads, and ask for whoever else a connection needs when it needs
    /// him. Off: everything is known beforehand, so that no connection waits, at up to 400 bytes a workload.
    #[arg(long, env = "XDS_ON_DEMAND", default_value_t = false, action = ArgAction::Set)]
    pub xds_on_demand: bool,
    /// How long a connection waits for the control plane to say whom it goes to; then it is refused. As long as most
    /// apps are patient.
    #[arg(long, env = "AMBIT_ON_DEMAND_WAIT", default_value = "5s", value_parser = duration)]
    pub on_demand_wait: Duration,
    /// How long what was asked for is followed without anybody needing it. Longer than what runs every ten minutes pauses.
    #[arg(long, env = "AMBIT_ON_DEMAND_UNUSED", default_value = "15m", value_parser = duration)]
    pub on_demand_unused: Duration,
    /// Names and addresses that are followed at a time; whoever was not needed for longest makes room. More than a
    /// node's pods usually talk to, and a tenth of a large mesh.
    #[arg(long, env = "AMBIT_ON_DEMAND_MOST", default_value_t = 16384)]
    pub on_demand_most: usize,
    /// Certificate authority; by default the control plane itself.
    #[arg(long, env = "CA_ADDRESS", value_parser = address)]
    pub ca_address: Option<String>,
    /// Root certificates for the authority; by default those for discovery.
    #[arg(long, env = "CA_ROOT_CA", value_parser = root)]
    pub ca_root_ca: Option<PathBuf>,
    /// Revoked certificates: a PEM file of lists, read again when it changes. Empty, or not there: nobody was revoked.
    #[arg(long, env = "CRL_PATH", value_parser = path)]
    pub crl_path: Option<PathBuf>,
    /// Name to expect in the certificate of the authority instead of the one dialled.
    #[arg(long, env = "ALT_CA_HOSTNAME", value_parser = filled)]
    pub alt_ca_hostname: Option<String>,
    /// Service account token, read again at each call because kubelet renews it. Empty: none.
    #[arg(
        long,
        env = "AUTH_TOKEN", value_parser = path,
        default_value = "/var/run/secrets/tokens/istio-token"
    )]
    pub auth_token: PathBuf,
    /// The cluster this node belongs to: metric label and gRPC metadata `clusterid`.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// DNS suffix of services; kubelet's own default.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Network this node is in. Empty is the network of meshes that have only one.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Kubernetes node: decides which workloads are ours.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Own pod, its namespace, address and service account: part of our discovery node id.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// See `POD_NAME`.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub pod_namespace: String,
    /// See `POD_NAME`. Several addresses are joined by commas.
    #[arg(long, env = "INSTANCE_IP", default_value = "127.0.0.1")]
    pub instance_ip: String,
    /// See `POD_NAME`.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "ztunnel")]
    pub service_account: String,

    /// `shared`: for the pods of this node, as its agent hands them over. `dedicated`: for one workload, in the network namespace this
    /// runs in: that of a machine, or of a pod on a node that has no ztunnel.
    #[arg(long, env = "PROXY_MODE", default_value = "shared", value_parser = Mode::parse)]
    pub mode: Mode,
    /// With `dedicated`: for whom, `namespace/name/service account`.
    #[arg(long, env = "PROXY_WORKLOAD_INFO", value_parser = workload)]
    pub workload: Option<WorkloadInfo>,
    /// A file with the token by which this machine joins, once; read again when another is needed. Unset: the workload
    /// has a service account token (`AUTH_TOKEN`), as pods have.
    #[arg(long, env = "AMBIT_JOIN_TOKEN", value_parser = path)]
    pub join_token: Option<PathBuf>,
    /// Where a machine that joined keeps its key and certificate: root's alone, and on a disk that outlives the process.
    #[arg(
        long,
        env = "AMBIT_MEMBERSHIP_DIR",
        default_value = "/var/lib/ambit/membership"
    )]
    pub membership_dir: PathBuf,
    /// Run the commands that probes of WorkloadGroups name, as whom this runs. Off: who may write a WorkloadGroup would be who may run
    /// anything on this machine.
    #[arg(long, env = "AMBIT_EXEC_PROBES", default_value_t = false, action = ArgAction::Set)]
    pub exec_probes: bool,
    /// With `dedicated`, in a pod: what kubelet would ask its applications, by the path at which it asks us; JSON, as Istio's injector
    /// writes it.
    #[arg(long, env = "ISTIO_KUBE_APP_PROBERS", default_value = "", value_parser = Probers::parse)]
    pub app_probers: Probers,
    /// The machine's key and certificate.
    #[arg(skip)]
    pub membership: Option<Arc<Membership>>,
    /// How the machine's application does, as it is found out: well, or why not.
    #[arg(skip)]
    pub health: Option<Arc<watch::Sender<Option<String>>>>,

    /// Socket of the node agent, which hands over pods. The path both of Istio's charts mount.
    #[arg(
        long,
        env = "INPOD_UDS",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    pub inpod_uds: PathBuf,
    /// Folder of the socket by which a ztunnel hands its connections to its successor: root's alone, and the same for all
    /// ztunnels of the node. Unset: `handover` beside the node agent's socket. `off`: they drain instead.
    #[arg(long, env = "AMBIT_HANDOVER_DIR", value_parser = path)]
    pub handover_dir: Option<PathBuf>,
    /// Let a second ztunnel bind the same ports in each pod: how an upgrade leaves no gap.
    #[arg(long, env = "INPOD_PORT_REUSE", default_value_t = true, action = ArgAction::Set)]
    pub inpod_port_reuse: bool,
    /// Mark on every socket inside pods; the pods' packet rules recognise us by it.
    #[arg(long, env = "PACKET_MARK", default_value = "0x539", value_parser = number)]
    pub packet_mark: u32,
    /// Listen on IPv6 too. Off only for kernels whose IPv6 is present but broken.
    #[arg(long, env = "IPV6_ENABLED", default_value_t = true, action = ArgAction::Set)]
    pub ipv6_enabled: bool,
    /// Whether applications must see the client's address. Unset: wherever it can be had.
    #[arg(long, env = "ENABLE_ORIG_SRC", action = ArgAction::Set)]
    pub require_original_source: Option<bool>,
    /// Carry connections between pods of this node through an encrypted tunnel too, for those who
    /// must encrypt everything. Off: joined in process, at a tenth of the cost, under the same policies.
    #[arg(long, env = "AMBIT_FORCE_TUNNEL", default_value_t = false, action = ArgAction::Set)]
    pub force_tunnel: bool,

    /// Answer DNS for names of the mesh inside pods.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", default_value_t = true, action = ArgAction::Set)]
    pub dns_proxy: bool,
    /// Port of the DNS proxy on the pods' loopback; the packet rules redirect to it.
    #[arg(long, env = "AMBIT_DNS_PORT", default_value_t = 15053)]
    pub dns_port: u16,
    /// Where resolvers and search domains are read: kubelet writes the pod's DNS policy there.
    #[arg(long, env = "AMBIT_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,

    /// How long certificates are asked for. A day: renewed at half life, an outage of the
    /// authority of 12 hours passes unnoticed.
    #[arg(long, env = "SECRET_TTL", default_value = "86400s", value_parser = duration)]
    pub secret_ttl: Duration,

    /// The names of a mesh that has several, with commas between them: trust domains whose members are each other's. One that
    /// changes its name has two until the last certificate of the old one has ended. Empty: each has its own only.
    #[arg(long, env = "AMBIT_TRUST_DOMAINS", value_delimiter = ',')]
    pub trust_domains: Vec<String>,

    /// What carries tunnels, in both roles: `own`, our records and frames, which cost less and whose
    /// connections a successor goes on with, or `h2`, the `h2` crate over rustls. Peers see no difference.
    #[arg(long, env = "AMBIT_ENGINE", default_value = "own", value_parser = engine)]
    pub engine: Engine,
    /// A tunnel to somebody met within the hour goes on with the session: no certificates and signatures, which are most of
    /// what a handshake costs. It proves as much (docs/security.md); off for those who want them shown each time.
    #[arg(long, env = "AMBIT_RESUME_SESSIONS", default_value_t = true, action = ArgAction::Set)]
    pub resume_sessions: bool,
    /// Streams on one tunnel connection; half of what servers allow, to leave room for races.
    #[arg(long, env = "POOL_MAX_STREAMS_PER_CONNECTION", default_value_t = 100)]
    pub pool_max_streams: u16,
    /// An unused tunnel is kept this long: a handshake costs more than five minutes of memory.
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", default_value = "300s", value_parser = duration)]
    pub pool_unused_release: Duration,

    /// Connections of all pods together; new ones beyond them are refused. Unset: half of the descriptors that we may have,
    /// and no more than fit into the container's memory.
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS", value_parser = count)]
    pub max_connections: Option<usize>,
    /// Connections of one pod. Unset: half of those of all, so that no pod takes the others their room.
    #[arg(long, env = "AMBIT_MAX_CONNECTIONS_PER_WORKLOAD", value_parser = count)]
    pub max_connections_per_workload: Option<usize>,
    /// Handshakes at the tunnel ports that are under way at a time, half of them with one pod. Unset: a quarter of the
    /// connections, and 4,096 at most: more than that two threads do not bring to an end within their ten seconds.
    #[arg(long, env = "AMBIT_MAX_HANDSHAKES", value_parser = count)]
    pub max_handshakes: Option<usize>,
    /// Bytes of memory beyond which new connections are refused. Unset: nine tenths of the container's limit, if it has one:
    /// to be ended by the kernel would cost everybody's.
    #[arg(long, env = "AMBIT_MAX_MEMORY")]
    pub max_memory: Option<u64>,

    /// Flows of UDP of one pod in each direction; of more, datagrams are dropped. Enough for a resolver's clients, and what
    /// they cost (a socket, some kilobytes) is no more than that of connections.
    #[arg(long, env = "AMBIT_UDP_MAX_FLOWS", default_value_t = 4096)]
    pub udp_flows: usize,
    /// A flow of UDP in which nothing has moved for so long is over. What kernels give one that has been answered.
    #[arg(long, env = "AMBIT_UDP_IDLE_TIMEOUT", default_value = "120s", value_parser = duration)]
    pub udp_idle: Duration,

    /// TCP keepalive on all sockets: finds dead peers that applications with idle connections would not.
    #[arg(long, env = "KEEPALIVE_ENABLED", default_value_t = true, action = ArgAction::Set)]
    pub keepalive: bool,
    /// Idle time before the first probe: below the 350 s after which cloud balancers forget a flow.
    #[arg(long, env = "KEEPALIVE_TIME", default_value = "180s", value_parser = duration)]
    pub keepalive_time: Duration,
    /// Time between probes.
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value = "180s", value_parser = duration)]
    pub keepalive_interval: Duration,
    /// Probes without answer before the connection is given up.
    #[arg(long, env = "KEEPALIVE_RETRIES", default_value_t = 9)]
    pub keepalive_retries: u32,
    /// Give up a connection whose data stays unacknowledged for as long as keepalive would take.
    #[arg(long, env = "USER_TIMEOUT_ENABLED", default_value_t = false, action = ArgAction::Set)]
    pub user_timeout: bool,

    /// Threads that carry traffic: `4` or `50%`. Unset: the CPU limit, else a quarter of the
    /// cores, at least two: the node belongs to its workloads.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_parser = Workers::parse)]
    pub worker_threads: Option<Workers>,
    /// CPUs the container may use, from its limit.
    #[arg(long, env = "ZTUNNEL_CPU_LIMIT")]
    pub cpu_limit: Option<usize>,
    /// What kubelet waits between SIGTERM and SIGKILL; connections drain within it. The chart's value.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", default_value_t = 30)]
    pub termination_grace_seconds: u64,
    /// How long connections may drain, instead of what the grace period leaves.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_parser = duration)]
    pub termination_deadline: Option<Duration>,

    /// Log filter: a level and `module=level` pairs.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// Log format: plain or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "plain")]
    pub log_format: ops::log::Format,
    /// Port of the admin door, on localhost only: it can change and stop things.
    #[arg(long, env = "AMBIT_ADMIN_PORT", default_value_t = 15000)]
    pub admin_port: u16,
    /// Series of metrics that are counted apart, for TCP and for names each; what is more falls together in a few whose labels
    /// are `overflow`. One is some 300 bytes here, and kilobytes where it is scraped.
    #[arg(long, env = "AMBIT_METRICS_MOST", default_value_t = ops::series::Bounds::default().most)]
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

    /// `proxy ztunnel`, as Istio's chart calls it; means nothing here.
    #[arg(hide = true, num_args = 0..)]
    pub role: Vec<String>,

    /// Metadata for the control plane, from `ISTIO_META_*`.
    #[arg(skip)]
    pub metadata: BTreeMap<String, String>,
    /// Extra gRPC headers for discovery, from `XDS_HEADER_*`.
    #[arg(skip)]
    pub xds_headers: Vec<(String, String)>,
    /// Extra gRPC headers for the certificate authority, from `CA_HEADER_*`.
    #[arg(skip)]
    pub ca_headers: Vec<(String, String)>,
}

/// Ports inside each pod. Fixed: the packet rules of Istio's node agent name them.
pub mod ports {
    /// Captured connections that leave the pod.
    pub const OUTBOUND: u16 = 15001;
    /// Plaintext that was on its way to the pod.
    pub const INBOUND_PLAIN: u16 = 15006;
    /// Tunnels to the pod.
    pub const INBOUND: u16 = 15008;
}

impl Config {
    /// The command line and environment of this process.
    pub fn from_process() -> Self {
        Self::parse().with_variables(std::env::vars())
    }

    /// Adds what comes from variables whose names are not known beforehand.
    pub fn with_variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix("ISTIO_META_") {
                self.metadata.insert(key.to_owned(), value);
            } else if let Some(header) = name.strip_prefix("XDS_HEADER_") {
                self.xds_headers.push((header.to_lowercase(), value));
            } else if let Some(header) = name.strip_prefix("CA_HEADER_") {
                self.ca_headers.push((header.to_lowercase(), value));
            }
        }
        self
    }

    /// The authority's address: the control plane's unless set.
    pub fn ca_address(&self) -> &str {
        self.ca_address.as_deref().unwrap_or(&self.xds_address)
    }

    /// The authority's roots: discovery's unless set.
    pub fn ca_root_ca(&self) -> &PathBuf {
        self.ca_root_ca.as_ref().unwrap_or(&self.xds_root_ca)
    }

    /// How connections to the control plane are opened. The rules of our own namespace, if it has any, leave them alone.
    pub fn dialler(&self) -> Dialler {
        Dialler {
            membership: self.membership.clone(),
            mark: (self.mode == Mode::Dedicated).then_some(self.packet_mark),
        }
    }

    /// The tokens that go with calls to the control plane: none from a machine that shows a certificate.
    pub fn tokens(&self) -> TokenSource {
        match &self.membership {
            Some(_) => token_source(Path::new("")),
            None => token_source(&self.auth_token),
        }
    }

    /// How much is counted apart.
    pub fn metrics(&self) -> Bounds {
        Bounds {
            most: self.metrics_most,
            expiry: self.metrics_expiry,
        }
    }

    /// Certificates, as the operator wants them kept and believed.
    pub fn certificates(&self) -> CertificatesConfig {
        CertificatesConfig {
            trust_domain_aliases: self.trust_domains.clone(),
            resume_sessions: self.resume_sessions,
            ..CertificatesConfig::default()
        }
    }

    /// Tunnels that are opened, as the operator wants them.
    pub fn pool(&self) -> PoolConfig {
        PoolConfig {
            streams: self.pool_max_streams.into(),
            release: self.pool_unused_release,
            engine: self.engine,
            ..PoolConfig::default()
        }
    }

    /// Tunnels that arrive, as the operator wants them.
    pub fn limits(&self) -> Limits {
        Limits {
            engine: self.engine,
            ..Limits::default()
        }
    }

    /// Where the socket for hand-overs is; nowhere when there are none.
    pub fn handover_dir(&self) -> Option<PathBuf> {
        if self.mode == Mode::Dedicated {
            return None;
        }
        let beside = || {
            self.inpod_uds
                .parent()
                .map(|folder| folder.join("handover"))
        };
        let folder = self.handover_dir.clone().or_else(beside);
        folder.filter(|folder| folder.as_os_str() != "off")
    }

    /// How long open connections may go on after SIGTERM: what kubelet's grace period leaves
    /// when we keep some seconds for reports and clean exit.
    pub fn drain_deadline(&self) -> Duration {
        let grace = self.termination_grace_seconds;
        let reserve = if grace <= 10 { 1 } else { 5 };
        self.termination_deadline
            .unwrap_or(Duration::from_secs(grace.saturating_sub(reserve)))
    }

    /// Threads for traffic, on a machine with `cores`.
    pub fn workers(&self, cores: usize) -> usize {
        match (self.worker_threads, self.cpu_limit) {
            (Some(Workers::Count(count)), _) => count,
            (Some(Workers::Percent(percent)), _) => (cores * percent).div_ceil(100).max(1),
            (None, Some(limit)) if limit > 0 => limit,
            (None, _) => cores.div_ceil(4).max(2),
        }
    }

    /// The first of our own addresses.
    pub fn own_ip(&self) -> IpAddr {
        let first = self
            .instance_ip
            .split(',')
            .next()
            .and_then(|ip| ip.trim().parse().ok());
        first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Config {
        Config::try_parse_from([&["ztunnel"], arguments].concat()).unwrap()
    }

    #[test]
    fn chart_arguments_are_understood() {
        assert_eq!(
            config(&["proxy", "ztunnel"]).xds_address,
            "https://istiod.istio-system.svc:15012"
        );
    }

    #[test]
    fn connections_drain_within_the_grace_period() {
        for (arguments, seconds) in [
            (&[][..], 25),
            (&["--termination-grace-seconds", "10"], 9),
            (&["--termination-grace-seconds", "0"], 0),
            (&["--termination-deadline", "3600s"], 3600),
        ] {
            assert_eq!(
                config(arguments).drain_deadline(),
                Duration::from_secs(seconds),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn one_engine_carries_what_is_opened_and_what_arrives() {
        for (arguments, engine) in [
            (&[][..], Engine::Own),
            (&["--engine", "h2"], Engine::H2),
            (&["--engine", "own"], Engine::Own),
        ] {
            let config = config(arguments);
            assert_eq!(config.pool().engine, engine, "{arguments:?}");
            assert_eq!(config.limits().engine, engine, "{arguments:?}");
        }
    }

    #[test]
    fn one_workload_is_named_by_three_parts() {
        let given = config(&["--mode", "dedicated", "--workload", "shop/vm-1/db"]);
        assert_eq!(given.mode, Mode::Dedicated);
        let workload = given.workload.unwrap();
        let parts = [workload.namespace, workload.name, workload.service_account];
        assert_eq!(parts, ["shop", "vm-1", "db"]);
        for bad in ["", "shop/vm-1", "shop//db", "a/b/c/d"] {
            let arguments = ["ztunnel", "--workload", bad];
            assert!(Config::try_parse_from(arguments).is_err(), "{bad:?}");
        }
        assert!(Config::try_parse_from(["ztunnel", "--mode", "sidecar"]).is_err());
    }

    #[test]
    fn workers_follow_flag_then_limit_then_cores() {
        for (arguments, cores, workers) in [
            (&[][..], 2, 2),
            (&[], 64, 16),
            (&["--cpu-limit", "3"], 64, 3),
            (&["--worker-threads", "5", "--cpu-limit", "3"], 64, 5),
            (&["--worker-threads", "50%"], 7, 4),
            (&["--worker-threads", "1%"], 2, 1),
        ] {
            assert_eq!(
                config(arguments).workers(cores),
                workers,
                "{arguments:?} on {cores}"
            );
        }
    }

    #[test]
    fn free_named_variables_are_sorted_into_their_places() {
        let variables = [
            ("ISTIO_META_DNS", "x"),
            ("XDS_HEADER_X-Team", "a"),
            ("CA_HEADER_X-Cell", "b"),
            ("HOME", "/"),
        ];
        let config = config(&[])
            .with_variables(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(
            config.metadata,
            BTreeMap::from([("DNS".to_owned(), "x".to_owned())])
        );
        assert_eq!(config.xds_headers, [("x-team".to_owned(), "a".to_owned())]);
        assert_eq!(config.ca_headers, [("x-cell".to_owned(), "b".to_owned())]);
    }
}
