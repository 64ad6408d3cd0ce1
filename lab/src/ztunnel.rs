//! A ztunnel in its pod: how it is started, and its admin, metrics and readiness pages.
//!
//! Its files are where its chart mounts them, below its working directory, and the environment names Istio's, so
//! that Istio's own ztunnel runs in its place.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    component::{Component, bare},
    control_plane, http,
    metrics::Metrics,
    pod::Pod,
    wait::Probe,
};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
const TOKEN: &str = "var/run/secrets/tokens/istio-token";
const ROOT_CERT: &str = "var/run/secrets/istio/root-cert.pem";

/// Which program, and what it is told beside the usual.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) binary: PathBuf,
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
        let home = node_dir.join(pod.name());
        mount(&home, credentials)?;
        let env = self.environment(node, node_dir, &home, &pod);
        let (binary, inside) = (self.binary.clone(), pod.clone());
        let recipe = move || {
            let mut command = bare(&binary);
            command
                .args(["proxy", "ztunnel"])
                .current_dir(&home)
                .envs(env.iter().map(|(k, v)| (k, v)));
            inside.entry()?.prepare(&mut command);
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
        })
    }

    fn environment(
        &self,
        node: &str,
        node_dir: &Path,
        home: &Path,
        pod: &Pod,
    ) -> Vec<(String, String)> {
        let path = |path: PathBuf| path.display().to_string();
        let usual = [
            ("XDS_ADDRESS", control_plane::url()),
            ("CA_ADDRESS", control_plane::url()),
            ("XDS_ROOT_CA", path(home.join(ROOT_CERT))),
            ("CA_ROOT_CA", path(home.join(ROOT_CERT))),
            ("AUTH_TOKEN", path(home.join(TOKEN))),
            ("CLUSTER_ID", "Kubernetes".into()),
            ("NODE_NAME", node.into()),
            ("POD_NAME", pod.name().into()),
            ("POD_NAMESPACE", pod.namespace().into()),
            ("INSTANCE_IP", pod.ip().to_string()),
            ("SERVICE_ACCOUNT", "ztunnel".into()),
            ("NETWORK", String::new()),
            ("INPOD_UDS", path(node_dir.join("ztunnel.sock"))),
            ("RUST_LOG", "info".into()),
        ];
        usual
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .chain(self.env.iter().cloned())
            .collect()
    }
}

fn mount(home: &Path, credentials: &Credentials<'_>) -> Result<()> {
    let (token, root_cert) = (home.join(TOKEN), home.join(ROOT_CERT));
    for file in [&token, &root_cert] {
        fs::create_dir_all(file.parent().context("a file in a directory")?)?;
    }
    fs::write(&token, credentials.token.trim())?;
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
    fs::copy(credentials.root_cert, &root_cert).context("the control plane's root certificate")?;
    Ok(())
}

impl Ztunnel {
    pub(crate) fn component(&self) -> &Arc<Component> {
        &self.component
    }

    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
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
