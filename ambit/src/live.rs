//! The proxies that are running, and the way to each: on a cluster a port-forward by the API server to the admin port
//! of its pod, which listens on the pod's loopback alone; without one, addresses that somebody has made reachable.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::cluster::Access;
use crate::parts::Part;
use crate::proxy::{self, Trouble};

/// Which proxies are asked.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Reach {
    /// Ask this proxy's admin port instead of a cluster's proxies; may be said again. NAME is its node, or
    /// namespace/pod of a waypoint.
    #[arg(long = "proxy", value_name = "[NAME=]HOST:PORT")]
    told: Vec<Told>,
    /// A file with one such proxy a line; `#` begins a comment.
    #[arg(long = "proxies", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A proxy that somebody has told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    name: Option<String>,
    address: String,
}

impl FromStr for Told {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (Some(name.trim().to_owned()), address.trim()),
            None => (None, text.trim()),
        };
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) if name.as_deref() != Some("") => Ok(Self {
                name,
                address: address.to_owned(),
            }),
            _ => Err(format!("{text:?} is not [NAME=]HOST:PORT")),
        }
    }
}

impl Reach {
    /// The proxies that there are; asks no proxy yet.
    pub(crate) async fn proxies(&self, access: &Access) -> anyhow::Result<Proxies> {
        let mut told = self.told.clone();
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            told.extend(listed(&text).with_context(|| file.display().to_string())?);
        }
        if told.is_empty() && self.file.is_none() {
            return Proxies::of_cluster(access).await;
        }
        let (waypoints, ztunnels): (Vec<_>, Vec<_>) = told.into_iter().partition(Told::is_waypoint);
        if ztunnels.is_empty() {
            bail!("no ztunnel was told of: --proxy HOST:PORT of its admin port (15000)");
        }
        let proxy = |it: Told| Proxy {
            name: it.name.clone().unwrap_or_else(|| it.address.clone()),
            node: it.name,
            way: Way::Address(it.address),
        };
        Ok(Proxies {
            ztunnels: ztunnels.into_iter().map(proxy).collect(),
            waypoints: waypoints.into_iter().map(proxy).collect(),
            cluster: None,
        })
    }
}

impl Told {
    fn is_waypoint(&self) -> bool {
        self.name.as_ref().is_some_and(|name| name.contains('/'))
    }
}

fn listed(text: &str) -> anyhow::Result<Vec<Told>> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines = lines.filter(|line| !line.is_empty());
    lines
        .map(|line| line.parse().map_err(anyhow::Error::msg))
        .collect()
}

/// The proxies that are running.
pub(crate) struct Proxies {
    pub(crate) ztunnels: Vec<Proxy>,
    /// Those that were told of; a cluster's are found when they are needed.
    waypoints: Vec<Proxy>,
    pub(crate) cluster: Option<Client>,
}

/// One proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    /// For messages.
    pub(crate) name: String,
    /// Where it runs, if that is known before it is asked.
    node: Option<String>,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Address(String),
    Pod {
        client: Client,
        namespace: String,
        pod: String,
    },
}

impl Proxies {
    async fn of_cluster(access: &Access) -> anyhow::Result<Self> {
        let client = access.connect().await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &access.system);
        let of_ztunnel = ListParams::default().labels(Part::Ztunnel.selector());
        let found = pods
            .list(&of_ztunnel)
            .await
            .context("cannot list the ztunnels' Pods")?;
        let mut by_node: BTreeMap<String, (bool, String)> = BTreeMap::new();
        for pod in found {
            let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
                continue;
            };
            // While one replaces another, the one that stays is the one that decides.
            let stays = pod.metadata.deletion_timestamp.is_none();
            let known = by_node.entry(node).or_default();
            if stays || !known.0 {
                *known = (stays, pod.name_any());
            }
        }
        if by_node.is_empty() {
            bail!(
                "no ztunnel runs in namespace {} (--istio-namespace): is the mesh installed? (ambit status)",
                access.system
            );
        }
        let ztunnels = by_node.into_iter().map(|(node, (_, pod))| Proxy {
            name: format!("ztunnel of node {node}"),
            node: Some(node),
            way: Way::Pod {
                client: client.clone(),
                namespace: access.system.clone(),
                pod,
            },
        });
        Ok(Self {
            ztunnels: ztunnels.collect(),
            waypoints: Vec::new(),
            cluster: Some(client),
        })
    }

    /// The ztunnels that may serve pods of this node: that one if it is known which it is, else all.
    pub(crate) fn of_node(&self, node: &str) -> Vec<&Proxy> {
        let named: Vec<_> = self
            .ztunnels
            .iter()
            .filter(|it| it.node.as_deref() == Some(node))
            .collect();
        let unnamed = self.ztunnels.iter().filter(|it| it.node.is_none());
        match named.is_empty() {
            true => unnamed.collect(),
            false => named,
        }
    }

    /// A waypoint's pod.
    pub(crate) fn waypoint(&self, namespace: &str, pod: &str) -> Option<Proxy> {
        let name = format!("{namespace}/{pod}");
        if let Some(client) = &self.cluster {
            return Some(Proxy {
                name: format!("waypoint {name}"),
                node: None,
                way: Way::Pod {
                    client: client.clone(),
                    namespace: namespace.to_owned(),
                    pod: pod.to_owned(),
                },
            });
        }
        self.waypoints.iter().find(|it| it.name == name).cloned()
    }

    /// Asks all ztunnels the same, some at a time; in their order.
    pub(crate) async fn all(&self, path: &str) -> Vec<(&Proxy, Result<String, Trouble>)> {
        let mut answers: Vec<Option<Result<String, Trouble>>> =
            self.ztunnels.iter().map(|_| None).collect();
        let mut asking = JoinSet::new();
        let mut waiting = self.ztunnels.iter().enumerate();
        loop {
            while asking.len() < AT_ONCE
                && let Some((at, proxy)) = waiting.next()
            {
                let (proxy, path) = (proxy.clone(), path.to_owned());
                asking.spawn(async move { (at, proxy.ask(&path).await) });
            }
            match asking.join_next().await {
                Some(Ok((at, answer))) => answers[at] = Some(answer),
                Some(Err(_)) => {}
                None => break,
            }
        }
        let unanswered = || Err(Trouble::Unreached("it could not be asked".to_owned()));
        let answers = answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(unanswered));
        self.ztunnels.iter().zip(answers).collect()
    }
}

impl Proxy {
    /// `GET path` of its admin port.
    pub(crate) async fn ask(&self, path: &str) -> Result<String, Trouble> {
        match &self.way {
            Way::Address(address) => proxy::ask_at(address, path).await,
            Way::Pod {
                client,
                namespace,
                pod,
            } => proxy::ask_inside(client, namespace, pod, ADMIN, path).await,
        }
    }

    /// The same, which is JSON.
    pub(crate) async fn json(&self, path: &str) -> Result<Value, Trouble> {
        let text = self.ask(path).await?;
        serde_json::from_str(&text)
            .map_err(|error| Trouble::Unreached(format!("its answer is not understood: {error}")))
    }
}

/// A value in a query.
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(char::from(byte));
            }
            _ => {
                // Writing to a String does not fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// The admin port of ztunnels and waypoints.
const ADMIN: u16 = 15000;
/// Port-forwards at a time.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_told_of_by_address_with_or_without_its_name() {
        let told = |text: &str| text.parse::<Told>();
        let named = told("node-1=127.0.0.1:15000").unwrap();
        assert_eq!(
            (named.name.as_deref(), &*named.address),
            (Some("node-1"), "127.0.0.1:15000")
        );
        assert!(!named.is_waypoint());
        assert!(told("shop/way-0=[::1]:15000").unwrap().is_waypoint());
        assert_eq!(told("localhost:15000").unwrap().name, None);
        for wrong in [
            "",
            "node-1",
            "node-1=",
            "=127.0.0.1:1",
            "127.0.0.1:http",
            "127.0.0.1:99999",
        ] {
            assert!(told(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_of_proxies_has_one_a_line_and_comments() {
        let file = "# the lab\nnode-1=127.0.0.1:1 # first\n\n 127.0.0.1:2\n";
        let found = listed(file).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].address, "127.0.0.1:2");
        assert!(listed("nonsense").is_err());
    }

    #[test]
    fn what_means_something_in_a_query_is_escaped() {
        assert_eq!(encoded("shop/web:80"), "shop/web:80");
        assert_eq!(encoded("a&b=c d%"), "a%26b%3Dc%20d%25");
    }
}
