//! The control plane's host: istiod-lite over the lab's directory, and the name server of the outside world.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    component::{Component, bare},
    http,
    netns::Netns,
    run,
    wait::Probe,
};

/// Where ztunnels look for it if nothing is said; the outside world's name server knows the name.
pub(crate) const NAME: &str = "istiod.istio-system.svc";
const GRPC: u16 = 15012;
/// Its variable for the directory of a signer it is given.
pub(crate) const SIGNER: &str = "ROOT_CA_DIR";
const MONITORING: u16 = 15014;

/// What [`istiod`] and [`names`] are made from.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) netns: Netns,
    pub(crate) addresses: Vec<IpAddr>,
    /// Where the names of the outside world point.
    pub(crate) outside: Vec<IpAddr>,
    pub(crate) bin: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) env: Vec<(String, String)>,
}

impl Site {
    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The roots of trust, for those who must verify istiod-lite: those of its own signer, or of the one it was given.
    pub(crate) fn root_cert(&self) -> PathBuf {
        let given = self.env.iter().find(|(key, _)| key == SIGNER);
        let signer = given.map_or_else(|| self.state(), |(_, dir)| dir.into());
        signer.join("root-cert.pem")
    }

    fn monitoring(&self) -> SocketAddr {
        SocketAddr::new(self.addresses[0], MONITORING)
    }

    /// A service-account token bound to a pod, as the kubelet would project it.
    pub(crate) fn token(&self, namespace: &str, account: &str, pod: &str) -> Result<String> {
        let mut command = bare(&self.bin.join("istiod-lite"));
        command
            .arg("token")
            .arg("--config-dir")
            .arg(&self.config)
            .arg("--state-dir")
            .arg(self.state());
        command.args([
            "--namespace",
            namespace,
            "--service-account",
            account,
            "--pod",
            pod,
        ]);
        run::run(&mut command).context("issuing a token")
    }

    /// A service-account token that is bound to no pod, as `kubectl create token` would issue.
    pub(crate) fn account_token(&self, namespace: &str, account: &str) -> Result<String> {
        let mut command = bare(&self.bin.join("istiod-lite"));
        command.arg("token").arg("--config-dir").arg(&self.config);
        command.arg("--state-dir").arg(self.state());
        command.args(["--namespace", namespace, "--service-account", account]);
        run::run(&mut command).context("issuing a token")
    }

    /// `istiod-lite vm …` over the lab's state.
    pub(crate) fn vm(&self, words: &[&str]) -> Result<String> {
        let mut command = bare(&self.bin.join("istiod-lite"));
        command.arg("vm").args(words);
        command.arg("--config-dir").arg(&self.config);
        command.arg("--state-dir").arg(self.state());
        run::run(&mut command).context("istiod-lite vm")
    }
}

pub(crate) fn istiod(site: &Site) -> Component {
    let recipe = {
        let site = site.clone();
        move || {
            let mut command = bare(&site.bin.join("istiod-lite"));
            command
                .arg("run")
                .arg("--config-dir")
                .arg(&site.config)
                .arg("--state-dir")
                .arg(site.state());
            command.args([
                "--listen-grpc",
                &format!("[::]:{GRPC}"),
                "--listen-monitoring",
                &format!("[::]:{MONITORING}"),
            ]);
            command.args([
                "--dns-name",
                NAME,
                "--dns-name",
                "istiod.istio-system.svc.cluster.local",
            ]);
            command
                .env("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel")
                .env("CLUSTER_ID", "Kubernetes")
                .env("RUST_LOG", "info");
            command.envs(site.env.iter().map(|(k, v)| (k, v)));
            enter(&site, &mut command)?;
            Ok(command)
        }
    };
    let ready = {
        let site = site.clone();
        move || {
            Ok(
                match http::request(&site.netns, "GET", site.monitoring(), "/ready") {
                    Ok(answer) if answer.status == 200 && site.root_cert().exists() => {
                        Probe::Ready(())
                    }
                    Ok(answer) => {
                        Probe::NotYet(format!("readiness says {}: {}", answer.status, answer.body))
                    }
                    Err(error) => Probe::NotYet(format!("{error:#}")),
                },
            )
        }
    };
    Component::new(
        "istiod-lite",
        site.dir.join("istiod-lite.log"),
        Box::new(recipe),
        Box::new(ready),
    )
}

/// dnsmasq: a handful of names of the outside world, NXDOMAIN for all others.
pub(crate) fn names(site: &Site) -> Component {
    let recipe = {
        let site = site.clone();
        move || {
            let mut command = bare(Path::new("dnsmasq"));
            command.args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--user=root",
                "--no-hosts",
                "--no-resolv",
            ]);
            command.args([
                "--local=/#/",
                "--local-ttl=30",
                "--log-queries",
                "--log-facility=-",
            ]);
            command.args(
                records(&site.addresses, &site.outside)
                    .iter()
                    .map(|record| format!("--host-record={record}")),
            );
            enter(&site, &mut command)?;
            Ok(command)
        }
    };
    let netns = site.netns.clone();
    let ready = move || {
        Ok(if netns.listens_on(53)? {
            Probe::Ready(())
        } else {
            Probe::NotYet("port 53 is not open".into())
        })
    };
    Component::new(
        "dnsmasq",
        site.dir.join("dnsmasq.log"),
        Box::new(recipe),
        Box::new(ready),
    )
}

/// Names of the outside world, all on one host, and the control plane's own.
pub const OUTSIDE_NAMES: [&str; 3] = ["api.example.com", "db.example.com", "www.example.org"];

fn records(control_plane: &[IpAddr], outside: &[IpAddr]) -> Vec<String> {
    let record = |name: &str, addresses: &[IpAddr]| {
        addresses.iter().fold(name.to_owned(), |record, address| {
            format!("{record},{address}")
        })
    };
    let mut records = vec![record(NAME, control_plane)];
    records.extend(OUTSIDE_NAMES.iter().map(|name| record(name, outside)));
    records
}

fn enter(site: &Site, command: &mut Command) -> Result<()> {
    site.netns.entry()?.prepare(command);
    Ok(())
}

/// How long a change may take from the directory to a node.
pub(crate) const PROPAGATION: Duration = Duration::from_secs(60);
