//! Flags, each with its environment variable; names and defaults are Istio's where it has one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::translate::waypoint::Unready;
use crate::world::{EgressMode, Settings};

/// The control plane of the mesh.
#[derive(Debug, Parser)]
#[command(name = "istiod-lite", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve configuration and certificates to proxies.
    Run(Box<Run>),
    /// Print a service account token signed by this control plane's own key.
    Token(Token),
    /// Machines that are no pods: tokens by which they join, and the book of those who have.
    #[command(subcommand)]
    Vm(Vm),
    /// Read the configuration once, print every refused object with file, line and reason.
    Check(Check),
}

/// `istiod-lite vm`
#[derive(Debug, Clone, Subcommand)]
pub enum Vm {
    /// Print a token by which one machine joins, once.
    Token(Box<JoinToken>),
    /// List the machines that have joined.
    List(Book),
    /// Take a machine out: it gets no more certificates, and no token made before brings it back.
    Remove {
        #[command(flatten)]
        #[allow(missing_docs)] // flattened
        book: Book,
        /// Its workload, namespace/name.
        machine: String,
    },
}

/// Where the book of machines is: in a state directory, or, without --config-dir, in a cluster.
#[derive(Debug, Clone, Args)]
pub struct Book {
    /// Directory of Kubernetes YAML that stands in for an API server.
    #[arg(long, value_name = "DIR", env = "CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// With --config-dir: the directory that istiod-lite keeps its own files in, as it was told.
    #[arg(long, value_name = "DIR", env = "STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// How to reach the API server, if not as a pod does.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the control plane.
    #[arg(long, default_value = "istio-system", env = "POD_NAMESPACE")]
    pub system_namespace: String,
}

impl Book {
    /// The state directory, if it is one.
    pub fn state(&self) -> Option<PathBuf> {
        let places = Places {
            config_dir: self.config_dir.clone()?,
            state_dir: self.state_dir.clone(),
        };
        Some(places.state())
    }
}

/// `istiod-lite vm token`
#[derive(Debug, Clone, Args)]
pub struct JoinToken {
    #[command(flatten)]
    #[allow(missing_docs)] // flattened
    pub book: Book,
    /// Namespace of its workload and of its account.
    #[arg(long)]
    pub namespace: String,
    /// The account.
    #[arg(long)]
    pub service_account: String,
    /// Name of its workload. By default that of the group and its address; without an address that of the group, or of the account,
    /// and eight letters.
    #[arg(long)]
    pub name: Option<String>,
    /// The WorkloadGroup that its WorkloadEntry is made from. Without one the entry of its name is there already.
    #[arg(long)]
    pub group: Option<String>,
    /// Its addresses: it joins, and comes back, from there alone; the first is that of its workload. By default the one that it
    /// joins from.
    #[arg(long, value_delimiter = ',')]
    pub address: Vec<IpAddr>,
    /// Something between the machine and us translates its address: where it comes from is not compared with --address.
    #[arg(long, requires = "address")]
    pub translated: bool,
    /// How long the token is good, at most a day.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub ttl: Duration,
}

/// Where the configuration and our own files are, without a cluster.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// Directory of Kubernetes YAML that stands in for an API server.
    #[arg(long, value_name = "DIR", env = "CONFIG_DIR")]
    pub config_dir: PathBuf,
    /// Directory for the root certificate, its key and the token key. By default `.istiod-lite`
    /// inside the configuration, which readers of the configuration skip.
    #[arg(long, value_name = "DIR", env = "STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

impl Places {
    /// The state directory, given or by default.
    pub fn state(&self) -> PathBuf {
        let default = || self.config_dir.join(".istiod-lite");
        self.state_dir.clone().unwrap_or_else(default)
    }
}

/// Where the objects come from, and what our own files are kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A directory of YAML; tokens and signer are files beside it.
    Directory {
        /// `--config-dir`
        config: PathBuf,
        /// `--state-dir`
        state: PathBuf,
    },
    /// An API server; everything we keep is an object in it.
    Kubernetes {
        /// `--kubeconfig`; without one the pod's own account.
        kubeconfig: Option<PathBuf>,
    },
}

/// `istiod-lite run`
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// Directory of Kubernetes YAML that stands in for an API server. Without it the objects come
    /// from Kubernetes.
    #[arg(long, value_name = "DIR", env = "CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// With --config-dir: directory for the root certificate, its key and the token key. By default
    /// `.istiod-lite` inside the configuration, which readers of the configuration skip.
    #[arg(long, value_name = "DIR", env = "STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// With --config-dir: the mesh's settings, as key `mesh` of ConfigMap `istio` has them on a cluster. What it says
    /// goes before the flags.
    #[arg(long, value_name = "FILE", env = "MESH_CONFIG")]
    pub mesh_config: Option<PathBuf>,
    /// How to reach the API server. By default as the pod's own service account, which is what a
    /// control plane inside its cluster wants.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Audiences of the tokens that proxies bring; one of them must be in the token.
    #[arg(long, default_value = crate::token::AUDIENCE, env = "TOKEN_AUDIENCES", value_delimiter = ',')]
    pub token_audiences: Vec<String>,
    /// Name of this control plane beside others: one more name of the server's certificate,
    /// `istiod-<revision>.<namespace>.svc`.
    #[arg(long, default_value = "default", env = "REVISION")]
    pub revision: String,
    /// gRPC over TLS: configuration and certificates.
    #[arg(long, value_name = "ADDR", default_value = "[::]:15012")]
    pub listen_grpc: SocketAddr,
    /// gRPC in the clear, for loopback only: tokens are readable on it. Off by default.
    #[arg(long, value_name = "ADDR")]
    pub listen_plaintext: Option<SocketAddr>,
    /// Metrics, readiness, version, debug.
    #[arg(long, value_name = "ADDR", default_value = "[::]:15014")]
    pub listen_monitoring: SocketAddr,
    /// Admission of the mesh's objects. Only with Kubernetes.
    #[arg(long, value_name = "ADDR", default_value = "[::]:15017")]
    pub listen_webhook: SocketAddr,
    /// Image of the proxy that pods of mode `dedicated` are given. Without it and the next, none is given.
    #[arg(long, value_name = "IMAGE", env = "AMBIT_ZTUNNEL_IMAGE")]
    pub ztunnel_image: Option<String>,
    /// Image of the node agent, which lays the packet rules in those pods.
    #[arg(long, value_name = "IMAGE", env = "AMBIT_CNI_IMAGE")]
    pub cni_image: Option<String>,
    /// How they are given it, JSON: what the chart has under `sidecarInjector`.
    #[arg(long, value_name = "JSON", env = "AMBIT_SIDECAR_INJECTOR", value_parser = crate::inject::Chart::from_str)]
    pub sidecar_injector: Option<crate::inject::Chart>,
    #[command(flatten)]
    #[allow(missing_docs)] // flattened
    pub write: crate::write::Flags,
    /// Further names and addresses of the server's certificate, beside `istiod.<namespace>.svc`
    /// and its older names, `localhost`, and the address it listens on.
    #[arg(
        long = "dns-name",
        value_name = "NAME",
        env = "ISTIOD_CUSTOM_HOST",
        value_delimiter = ','
    )]
    pub dns_names: Vec<String>,
    /// Use the signer in this directory (`ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`,
    /// `root-cert.pem`) instead of a self-signed root in the state directory.
    #[arg(long, value_name = "DIR", env = "ROOT_CA_DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Trust domain of every identity.
    #[arg(long, default_value = "cluster.local", env = "TRUST_DOMAIN")]
    pub trust_domain: String,
    /// Name of this cluster.
    #[arg(long, default_value = "Kubernetes", env = "CLUSTER_ID")]
    pub cluster_id: String,
    /// DNS domain of Kubernetes services.
    #[arg(long, default_value = "cluster.local", env = "CLUSTER_DOMAIN")]
    pub cluster_domain: String,
    /// Namespace of the control plane; policies in it hold for the whole mesh.
    #[arg(long, default_value = "istio-system", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Accounts (`namespace/name`) of node proxies, which may ask for the certificates of the pods
    /// of their node. By default `ztunnel` of the control plane's namespace.
    #[arg(long, env = "CA_TRUSTED_NODE_ACCOUNTS", value_delimiter = ',')]
    pub trusted_node_accounts: Vec<String>,
    /// Life of a certificate when its owner asks for none.
    #[arg(long, default_value = "24h", env = "DEFAULT_WORKLOAD_CERT_TTL", value_parser = duration)]
    pub default_cert_ttl: Duration,
    /// Longest life of a certificate; who asks for more is refused.
    #[arg(long, default_value = "2160h", env = "MAX_WORKLOAD_CERT_TTL", value_parser = duration)]
    pub max_cert_ttl: Duration,
    /// How long a machine that joined by a token may be away after its certificate has ended, and come back by it. Later it needs
    /// another token.
    #[arg(long, default_value = "720h", env = "AMBIT_MACHINE_ABSENCE", value_parser = duration)]
    pub machine_absence: Duration,
    /// How long the WorkloadEntry of a machine stays after it went, without getting connections: it may only come to another
    /// replica, or start anew.
    #[arg(long, default_value = "1m", env = "AMBIT_MACHINE_GRACE", value_parser = duration)]
    pub machine_grace: Duration,
    /// A storm of changes is over when nothing changed for this long.
    #[arg(long, default_value = "100ms", env = "PILOT_DEBOUNCE_AFTER", value_parser = duration)]
    pub debounce_after: Duration,
    /// In a storm that does not end, a change is told after this long. (Istio's 10 s spare it whole
    /// pushes; ours cost what changed, and a large cluster is never quiet.)
    #[arg(long, default_value = "300ms", env = "PILOT_DEBOUNCE_MAX", value_parser = duration)]
    pub debounce_max: Duration,
    /// Age at which a proxy's connection is asked to come back, give or take a tenth: so proxies
    /// spread over replicas by themselves.
    #[arg(long, default_value = "30m", value_parser = duration)]
    pub max_connection_age: Duration,
    /// How often the signer's files are looked at.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub ca_poll: Duration,
    /// Send AuthorizationPolicies with annotation `istio.io/dry-run`, marked so.
    #[arg(long, env = "AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY")]
    pub dry_run_policies: bool,
    /// What becomes of traffic to whom names a waypoint that is missing or not ready: `refuse` it,
    /// or let it `pass` without the waypoint's policies, as Istio does. A namespace may say otherwise
    /// by its label.
    #[arg(long, default_value = "refuse", env = "AMBIT_WAYPOINT_UNREADY", value_parser = unready)]
    pub waypoint_unready: Unready,
    /// What becomes of connections of the mesh's pods to destinations that it does not know: they pass (`allow`), are logged
    /// as such (`log`) or refused (`refuse`). Labels of namespaces and workloads, and `outboundTrafficPolicy` of the mesh's
    /// settings, say otherwise.
    #[arg(long, default_value = "allow", env = "AMBIT_EGRESS")]
    pub egress: EgressMode,
    /// Whether workloads that an ALLOW policy applies to also allow their waypoint.
    #[arg(long, env = "PILOT_AUTO_ALLOW_WAYPOINT_POLICY")]
    pub auto_allow_waypoint: bool,
    /// Answer `/debug/…` on the monitoring port: it shows what runs in the mesh to everybody who
    /// reaches the port.
    #[arg(long, default_value_t = true, action = ArgAction::Set, env = "ENABLE_DEBUG_ON_HTTP")]
    pub debug: bool,
    /// What to log: `info`, `debug`, `istiod_lite::push=debug,info` …
    #[arg(long, default_value = "info", env = "RUST_LOG")]
    pub log: String,
    /// `plain` (Istio's) or `json`.
    #[arg(long, default_value = "plain", env = "LOG_FORMAT")]
    pub log_format: String,
}

impl Run {
    /// What the flags say of the mesh.
    pub fn settings(&self) -> Settings {
        Settings {
            cluster_id: self.cluster_id.clone(),
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            root_namespace: self.namespace.clone(),
            dry_run: self.dry_run_policies,
            waypoint_unready: self.waypoint_unready,
            auto_allow_waypoint: self.auto_allow_waypoint,
            egress: self.egress,
            ..Settings::default()
        }
    }
}

impl Run {
    /// Where the objects come from.
    pub fn input(&self) -> Input {
        let Some(config) = self.config_dir.clone() else {
            let kubeconfig = self.kubeconfig.clone();
            return Input::Kubernetes { kubeconfig };
        };
        let state = self.state_dir.clone();
        let places = Places {
            config_dir: config.clone(),
            state_dir: state,
        };
        Input::Directory {
            config,
            state: places.state(),
        }
    }

    /// With Istio's default filled in.
    pub fn trusted_nodes(&self) -> Vec<String> {
        match self.trusted_node_accounts.as_slice() {
            [] => vec![format!("{}/ztunnel", self.namespace)],
            accounts => accounts.to_vec(),
        }
    }

    /// Every name and address under which proxies may dial us.
    pub fn names(&self) -> Vec<String> {
        let services = ["istiod", "istiod-remote", "istio-pilot"];
        let mut names: Vec<String> = services
            .map(|service| format!("{service}.{}.svc", self.namespace))
            .into();
        if !self.revision.is_empty() {
            names.push(format!("istiod-{}.{}.svc", self.revision, self.namespace));
        }
        names.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
        let listen = self.listen_grpc.ip();
        if !listen.is_unspecified() {
            names.push(listen.to_string());
        }
        names.extend(self.dns_names.iter().cloned());
        let mut seen = std::collections::HashSet::from([String::new()]);
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

/// `istiod-lite token`
#[derive(Debug, Clone, Args)]
pub struct Token {
    #[command(flatten)]
    #[allow(missing_docs)] // flattened
    pub places: Places,
    /// Namespace of the account.
    #[arg(long, default_value = "istio-system")]
    pub namespace: String,
    /// The account.
    #[arg(long)]
    pub service_account: String,
    /// Bind the token to this pod of the configuration. A token without a pod cannot ask for the
    /// certificates of others.
    #[arg(long)]
    pub pod: Option<String>,
    /// How long it is good. By default twelve hours, as the projected volume of Istio's chart asks for.
    #[arg(long, default_value = "12h", value_parser = duration)]
    pub ttl: Duration,
    /// Who may accept it.
    #[arg(long, default_value = crate::token::AUDIENCE)]
    pub audience: String,
}

/// `istiod-lite check`
#[derive(Debug, Clone, Args)]
pub struct Check {
    /// Directory of Kubernetes YAML.
    #[arg(long, value_name = "DIR", env = "CONFIG_DIR")]
    pub config_dir: PathBuf,
}

fn unready(text: &str) -> Result<Unready, String> {
    match text {
        "refuse" => Ok(Unready::Refuse),
        "pass" => Ok(Unready::Pass),
        other => Err(format!("{other:?} is neither refuse nor pass")),
    }
}

/// `24h`, `1h30m`, `100ms`, `30s`: as Istio's settings spell durations. None of ours may be zero.
fn duration(text: &str) -> Result<Duration, String> {
    ops::time::duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("{text:?} is not a duration like 24h, 1h30m, 30s or 100ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_istio_writes_them() {
        let seconds = |text| duration(text).map(|it| it.as_secs_f64()).ok();
        let cases = [
            ("24h", Some(86_400.0)),
            ("1h30m", Some(5_400.0)),
            ("2160h0m0s", Some(7_776_000.0)),
            ("100ms", Some(0.1)),
            ("30", None),
            ("", None),
            ("0s", None),
            ("-5s", None),
            ("5d", None),
            ("99999999999h", None),
            ("h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }

    #[test]
    fn flags_do_not_contradict_each_other() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn defaults_are_istios() {
        let cli = Cli::try_parse_from(["istiod-lite", "run", "--config-dir", "/c"]).unwrap();
        let Command::Run(run) = cli.command else {
            panic!("not run");
        };
        assert_eq!(run.trusted_nodes(), ["istio-system/ztunnel"]);
        assert_eq!(
            run.names()[..2],
            ["istiod.istio-system.svc", "istiod-remote.istio-system.svc"]
        );
        assert_eq!(run.max_cert_ttl, Duration::from_secs(90 * 24 * 3600));
        let (config, state) = ("/c".into(), "/c/.istiod-lite".into());
        assert_eq!(run.input(), Input::Directory { config, state });
        assert_eq!(run.listen_plaintext, None);
    }

    #[test]
    fn without_a_directory_the_objects_come_from_kubernetes() {
        let arguments = [
            "istiod-lite",
            "run",
            "--kubeconfig",
            "/k",
            "--revision",
            "canary",
        ];
        let Command::Run(run) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("not run");
        };
        let kubeconfig = Some("/k".into());
        assert_eq!(run.input(), Input::Kubernetes { kubeconfig });
        let name = "istiod-canary.istio-system.svc".to_owned();
        assert!(run.names().contains(&name), "{:?}", run.names());
        assert_eq!(run.token_audiences, ["istio-ca"]);
    }

    #[test]
    fn several_names_may_be_given_in_both_ways() {
        let arguments = [
            "istiod-lite",
            "run",
            "--config-dir",
            "/c",
            "--dns-name",
            "a,b",
            "--dns-name",
            "10.0.0.1",
        ];
        let Command::Run(run) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("not run");
        };
        assert_eq!(run.dns_names, ["a", "b", "10.0.0.1"]);
    }
}
