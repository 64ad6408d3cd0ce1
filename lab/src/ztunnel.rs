//! A ztunnel in its pod: how it is started, and its admin, metrics and readiness pages.
//!
//! It starts as the container of its DaemonSet does: files where the chart mounts them, Istio's environment names and
//! nothing said that has a default, a read-only root file system, three capabilities. Istio's own ztunnel runs in its place.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use nix::libc::c_ulong;
use serde_json::Value;

use crate::{
    component::{Component, bare},
    http,
    metrics::Metrics,
    pod::Pod,
    wait::Probe,
};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// Below the directory that becomes its `/var/run`.
const TOKEN: &str = "secrets/tokens/istio-token";
const ROOT_CERT: &str = "secrets/istio/root-cert.pem";
/// The node agent's directory, that of the whole node.
const AGENT: &str = "ztunnel";
/// `NET_ADMIN`, `NET_RAW`, `SYS_ADMIN`.
const CAPABILITIES: &[c_ulong] = &[12, 13, 21];

/// Which program, and what it is told beside the usual.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) binary: PathBuf,
    /// It is started by a keeper.
    pub(crate) kept: bool,
    pub(crate) env: Vec<(String, String)>,
}

/// What the kubelet would mount into its pod.
#[derive(Debug)]
pub(crate) struct Credentials<'a> {
    pub(crate) token: &'a str,
    pub(crate) root_cert: &'a Path,
}

/// A ztunnel and its pod.
#[derive(Debug)]
pub(crate) struct Ztunnel {
    component: Arc<Component>,
    pod: Pod,
    /// Its `/var/run`.
    run: PathBuf,
}

impl Recipe {
    /// Lays out its files; it is not started yet.
    pub(crate) fn ztunnel(
        &self,
        node: &str,
        node_dir: &Path,
        pod: Pod,
        credentials: &Credentials<'_>,
    ) -> Result<Ztunnel> {
        let run = node_dir.join(pod.name()).join("run");
        mount(&run, &pod, credentials)?;
        let agent = node_dir.join(AGENT);
        let env = self.environment(node, &pod);
        let (binary, inside, var_run) = (self.binary.clone(), pod.clone(), run.clone());
        let keep = self.kept.then_some("keep");
        let recipe = move || {
            let mut command = bare(&binary);
            command
                .args(keep)
                .args(["proxy", "ztunnel"])
                .current_dir("/")
                .envs(env.iter().map(|(k, v)| (k, v)));
            let entry = inside.entry()?;
            let entry = entry.bind(&agent, var_run.join(AGENT))?;
            let entry = entry.bind(&var_run, "/var/run")?;
            entry.confined(CAPABILITIES).prepare(&mut command);
            Ok(command)
        };
        let (netns, at) = (pod.netns().clone(), SocketAddr::new(pod.ip(), READINESS));
        let ready = move || {
            Ok(match http::request(&netns, "GET", at, "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Probe::Ready(()),
                Ok(answer) => {
                    Probe::NotYet(format!("readiness says {}: {}", answer.status, answer.body))
                }
                Err(error) => Probe::NotYet(format!("{error:#}")),
            })
        };
        let name = format!("ztunnel on {node}");
        let component = Component::new(
            &name,
            node_dir.join("ztunnel.log"),
            Box::new(recipe),
            Box::new(ready),
        );
        Ok(Ztunnel {
            component: Arc::new(component),
            pod,
            run,
        })
    }

    fn environment(&self, node: &str, pod: &Pod) -> Vec<(String, String)> {
        let addresses = pod.addresses().iter().map(IpAddr::to_string);
        let usual = [
            ("CLUSTER_ID", "Kubernetes".into()),
            ("NODE_NAME", node.into()),
            ("POD_NAME", pod.name().into()),
            ("POD_NAMESPACE", pod.namespace().into()),
            ("INSTANCE_IP", addresses.collect::<Vec<_>>().join(",")),
            ("SERVICE_ACCOUNT", "ztunnel".into()),
            ("NETWORK", String::new()),
            ("RUST_LOG", "info".into()),
            // As in every container of a pod; a ztunnel of Istio's looks for its control plane by it.
            ("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc".into()),
        ];
        usual
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .chain(self.env.iter().cloned())
            .collect()
    }
}

fn mount(run: &Path, pod: &Pod, credentials: &Credentials<'_>) -> Result<()> {
    let (token, root_cert) = (run.join(TOKEN), run.join(ROOT_CERT));
    fs::create_dir_all(run.join(AGENT))?;
    for file in [&token, &root_cert] {
        fs::create_dir_all(file.parent().context("a file in a directory")?)?;
    }
    fs::write(&token, credentials.token.trim())?;
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
    fs::copy(credentials.root_cert, &root_cert).context("the control plane's root certificate")?;
    // Where this machine's is a link into the directory that is covered (systemd-resolved), it must lead somewhere.
    let resolv_conf = fs::canonicalize("/etc/resolv.conf").unwrap_or_default();
    if let Ok(below) = resolv_conf.strip_prefix("/run") {
        let link = run.join(below);
        fs::create_dir_all(link.parent().context("a file in a directory")?)?;
        fs::copy(pod.resolv_conf(), link).context("the pod's resolv.conf")?;
    }
    Ok(())
}

impl Ztunnel {
    pub(crate) fn component(&self) -> &Arc<Component> {
        &self.component
    }

    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The control plane's roots have changed, and the kubelet brings them: the whole file at once.
    pub(crate) fn project_roots(&self, root_cert: &Path) -> Result<()> {
        let fresh = self.run.join("fresh.pem");
        fs::copy(root_cert, &fresh).context("the control plane's root certificates")?;
        fs::rename(&fresh, self.run.join(ROOT_CERT)).context("projecting root certificates")
    }

    pub(crate) fn metrics(&self) -> Result<Metrics> {
        let page = self.ask("GET", SocketAddr::new(self.pod.ip(), METRICS), "/metrics")?;
        Ok(Metrics::parse(&page))
    }

    pub(crate) fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.ask("GET", admin(), "/config_dump")?).context("the config dump")
    }

    pub(crate) fn admin_post(&self, path: &str) -> Result<String> {
        self.ask("POST", admin(), path)
    }

    fn ask(&self, method: &str, at: SocketAddr, path: &str) -> Result<String> {
        http::request(self.pod.netns(), method, at, path)?.ok()
    }
}

/// The admin port is for the pod's own loopback only.
fn admin() -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), ADMIN)
}
