//! A waypoint: a Gateway, its Service, and pods that run the layer 7 proxy as their Deployment would.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::{Context, Result};
use nix::libc::c_ulong;
use serde_json::Value;

use crate::{
    access::AccessLog,
    component::{Component, bare},
    http,
    metrics::Metrics,
    pod::Pod,
    wait::Probe,
};

/// Labels of a Gateway's pods.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
pub(crate) const GATEWAY_CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
const NO_CAPABILITIES: &[c_ulong] = &[];

/// What a gateway's pods do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// They stand in front of services.
    Waypoint,
    /// They are the door of their network.
    EastWest,
}

impl Role {
    /// The class of its Gateways.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Waypoint => "istio-waypoint",
            Self::EastWest => "istio-east-west",
        }
    }

    /// As its Deployment tells the program.
    fn argument(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::EastWest => "east-west",
        }
    }
}

/// A waypoint and the pod that it began with.
#[derive(Debug)]
pub struct Waypoint {
    pub(crate) reference: String,
    pub(crate) first: WaypointPod,
}

impl Waypoint {
    /// `namespace/name`
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Its first pod.
    pub fn pod(&self) -> &WaypointPod {
        &self.first
    }
}

/// A pod of a waypoint. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct WaypointPod {
    pod: Pod,
    component: Arc<Component>,
}

impl WaypointPod {
    /// Starts the proxy in a pod and waits until it is ready.
    pub(crate) fn start(
        bin: &Path,
        pod: Pod,
        gateway: &str,
        token: &str,
        root_cert: &Path,
        more: Vec<(String, String)>,
        role: Role,
    ) -> Result<Self> {
        let run = pod.dir().join("run");
        let (token_file, root_file) = (
            run.join("secrets/tokens/istio-token"),
            run.join("secrets/istio/root-cert.pem"),
        );
        for file in [&token_file, &root_file] {
            fs::create_dir_all(file.parent().context("a file in a directory")?)?;
        }
        fs::write(&token_file, token.trim())?;
        fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600))?;
        fs::copy(root_cert, &root_file).context("the control plane's root certificate")?;
        let component = component(bin, &pod, gateway, run, more, role);
        component.start()?;
        Ok(Self {
            pod,
            component: Arc::new(component),
        })
    }

    /// Its pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its process.
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        let at = SocketAddr::new(self.pod.ip(), METRICS);
        let page = http::request(self.pod.netns(), "GET", at, "/metrics")?.ok()?;
        Ok(Metrics::parse(&page))
    }

    /// Its access log, from its beginning.
    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(self.component.log_path().to_owned())
    }

    /// What it says it knows.
    pub fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.ask("/config_dump")?).context("the config dump")
    }

    /// A page of its admin door.
    pub fn ask(&self, path: &str) -> Result<String> {
        let at = SocketAddr::from(([127, 0, 0, 1], ADMIN));
        http::request(self.pod.netns(), "GET", at, path)?.ok()
    }
}

fn component(
    bin: &Path,
    pod: &Pod,
    gateway: &str,
    run: std::path::PathBuf,
    more: Vec<(String, String)>,
    role: Role,
) -> Component {
    let (binary, inside) = (bin.join("waypoint"), pod.clone());
    let addresses: Vec<_> = pod.addresses().iter().map(ToString::to_string).collect();
    let env = [
        ("POD_NAME", pod.name().to_owned()),
        ("POD_NAMESPACE", pod.namespace().to_owned()),
        ("GATEWAY_NAME", gateway.to_owned()),
        ("SERVICE_ACCOUNT", gateway.to_owned()),
        ("INSTANCE_IP", addresses.join(",")),
        ("CLUSTER_ID", "Kubernetes".to_owned()),
        ("RUST_LOG", "info".to_owned()),
        // Tests need not wait as long as people would.
        ("AMBIT_DETECT_TIMEOUT", "300ms".to_owned()),
    ];
    let recipe = move || {
        let mut command = bare(&binary);
        command
            .args(["proxy", role.argument()])
            .current_dir("/")
            .envs(env.iter().map(|(key, value)| (key, value)))
            .envs(more.iter().map(|(key, value)| (key, value)));
        let entry = inside.entry()?.bind(&run, "/var/run")?;
        entry.confined(NO_CAPABILITIES).prepare(&mut command);
        Ok(command)
    };
    let (netns, at) = (pod.netns().clone(), SocketAddr::new(pod.ip(), READINESS));
    let ready = move || {
        Ok(match http::request(&netns, "GET", at, "/healthz/ready") {
            Ok(answer) if answer.status == 200 => Probe::Ready(()),
            Ok(answer) => Probe::NotYet(format!("it says {}: {}", answer.status, answer.body)),
            Err(error) => Probe::NotYet(format!("{error:#}")),
        })
    };
    let name = format!("waypoint {}/{}", pod.namespace(), pod.name());
    let log = pod.dir().join("waypoint.log");
    Component::new(&name, log, Box::new(recipe), Box::new(ready))
}
