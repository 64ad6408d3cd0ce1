//! The proxies that are running, and the way to each: on a cluster a port-forward by the API server to the admin port
//! of its pod, which listens on the pod's loopback alone; without one, addresses that somebody has made reachable.
//!
//! A pod may bring a proxy of its own ([`own`]). That one is asked in its pod, where others can listen too: what it says
//! counts for that pod and for no other, and is not taken without end. Machines have one of their own as well, which no
//! API server leads to; they are named.

pub(crate) mod own;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use api::k8s::labels;
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::cluster::{Access, is_missing};
use crate::parts::Part;
use crate::proxy::{self, Trouble};
use crate::vm::is_ready;
use own::Own;

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
            stands_for: None,
        };
        Ok(Proxies {
            ztunnels: ztunnels.into_iter().map(proxy).collect(),
            own: Vec::new(),
            waypoints: waypoints.into_iter().map(proxy).collect(),
            cluster: None,
            system: access.system.clone(),
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
    /// Those of nodes.
    pub(crate) ztunnels: Vec<Proxy>,
    /// Those of pods that bring their own, once they were looked for ([`Proxies::look_further`]).
    own: Vec<Proxy>,
    /// Those that were told of; a cluster's are found when they are needed.
    waypoints: Vec<Proxy>,
    pub(crate) cluster: Option<Client>,
    /// Namespace of the control plane.
    system: String,
}

/// Who is not asked.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Who should be, and why not.
    pub(crate) missed: Vec<String>,
    /// Machines, whose proxies only they themselves can ask.
    pub(crate) machines: Vec<String>,
}

/// One proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    /// For messages.
    pub(crate) name: String,
    /// Where it runs, if that is known before it is asked.
    node: Option<String>,
    way: Way,
    /// The pod that brings it, namespace and name; none of one that stands for many.
    stands_for: Option<(String, String)>,
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
        let ztunnels = by_node(&found.items).into_iter().map(|(node, pod)| Proxy {
            name: format!("ztunnel of node {node}"),
            node: Some(node),
            way: Way::Pod {
                client: client.clone(),
                namespace: access.system.clone(),
                pod,
            },
            stands_for: None,
        });
        Ok(Self {
            ztunnels: ztunnels.collect(),
            own: Vec::new(),
            waypoints: Vec::new(),
            cluster: Some(client),
            system: access.system.clone(),
        })
    }

    /// Looks for pods that bring their own proxy, and for machines; in one namespace, or in all of them.
    ///
    /// # Errors
    /// When there is nobody to ask.
    pub(crate) async fn look_further(&mut self, namespace: Option<&str>) -> anyhow::Result<Left> {
        let mut left = Left::default();
        if let Some(client) = self.cluster.clone() {
            if let Err(why) = self.find_own(&client, namespace).await {
                left.missed.push(format!(
                    "which pods bring their own proxy is not known: {why:#}"
                ));
            }
            match machines(&client, namespace).await {
                Ok(machines) => left.machines = machines,
                Err(why) => left
                    .missed
                    .push(format!("which machines there are is not known: {why:#}")),
            }
        }
        match self.ztunnels.is_empty() && self.own.is_empty() {
            true => bail!(self.nobody()),
            false => Ok(left),
        }
    }

    /// Page by page: they may be many, and few of them matter.
    async fn find_own(&mut self, client: &Client, namespace: Option<&str>) -> anyhow::Result<()> {
        let pods: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let found = pods.list(&page).await.context("cannot list Pods")?;
            let run = found
                .items
                .iter()
                .filter(|pod| own::of(pod) == Some(Own::Runs));
            self.own.extend(run.map(|pod| {
                let namespace = pod.namespace().unwrap_or_default();
                inside(client, namespace, pod.name_any())
            }));
            match found.metadata.continue_ {
                Some(next) if !next.is_empty() => page = page.continue_token(&next),
                _ => return Ok(()),
            }
        }
    }

    /// What to say where there is no proxy at all.
    pub(crate) fn nobody(&self) -> String {
        format!(
            "no ztunnel runs in namespace {} (--istio-namespace): is the mesh installed? (ambit status)",
            self.system
        )
    }

    /// The proxy that this pod brings itself.
    pub(crate) fn own_of(&self, namespace: &str, pod: &str) -> Option<Proxy> {
        let client = self.cluster.as_ref()?;
        Some(inside(client, namespace.to_owned(), pod.to_owned()))
    }

    /// All that can be asked about one workload, in the order in which they are: the proxy that it brings itself, those of its
    /// node, any.
    pub(crate) fn nearest<'a>(&'a self, own: Option<&'a Proxy>, node: &str) -> Vec<&'a Proxy> {
        let of_node = self.of_node(node);
        let others = self.ztunnels.iter();
        let others = others.filter(|it| !of_node.iter().any(|near| near.name == it.name));
        let near = own.into_iter().chain(of_node.iter().copied());
        near.chain(others).collect()
    }

    /// The ztunnels that may serve pods of this node: that one if it is known which it is, else all.
    fn of_node(&self, node: &str) -> Vec<&Proxy> {
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
                stands_for: None,
            });
        }
        self.waypoints.iter().find(|it| it.name == name).cloned()
    }

    /// Asks all ztunnels the same, those of nodes first, some at a time; in their order. A pod that has gone meanwhile took
    /// its connections along, and is left out.
    pub(crate) async fn all(&self, path: &str) -> Vec<(&Proxy, Result<String, Trouble>)> {
        let asked: Vec<&Proxy> = self.ztunnels.iter().chain(&self.own).collect();
        let unanswered = || Err(Trouble::Unreached("it could not be asked".to_owned()));
        let mut answers: Vec<Result<Option<String>, Trouble>> =
            asked.iter().map(|_| unanswered()).collect();
        let mut asking = JoinSet::new();
        let mut waiting = asked.iter().enumerate();
        loop {
            while asking.len() < AT_ONCE
                && let Some((at, &proxy)) = waiting.next()
            {
                let (proxy, path) = (proxy.clone(), path.to_owned());
                asking.spawn(async move { (at, proxy.ask_while_there(&path).await) });
            }
            match asking.join_next().await {
                Some(Ok((at, answer))) => answers[at] = answer,
                Some(Err(_)) => {}
                None => break,
            }
        }
        let answered = asked.into_iter().zip(answers);
        answered
            .filter_map(|(proxy, answer)| Some((proxy, answer.transpose()?)))
            .collect()
    }
}

/// The pod of each node that decides there. While one replaces another that is the one that stays; but where the new one does
/// not come up, as with an image that is not there, the old one goes on.
fn by_node(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, ((bool, bool, bool), String)> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            continue;
        };
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        let stays = pod.metadata.deletion_timestamp.is_none();
        let rank = (is_ready(pod), phase == Some("Running"), stays);
        let known = found.entry(node).or_default();
        if rank >= known.0 {
            *known = (rank, pod.name_any());
        }
    }
    let found = found.into_iter();
    found.map(|(node, (_, pod))| (node, pod)).collect()
}

/// The proxy in a pod that brings it.
fn inside(client: &Client, namespace: String, pod: String) -> Proxy {
    Proxy {
        name: format!("ztunnel in pod {namespace}/{pod}"),
        node: None,
        stands_for: Some((namespace.clone(), pod.clone())),
        way: Way::Pod {
            client: client.clone(),
            namespace,
            pod,
        },
    }
}

/// Machines that are there: entries made for one that joined, and has not gone.
async fn machines(client: &Client, namespace: Option<&str>) -> anyhow::Result<Vec<String>> {
    let resource = ApiResource {
        group: "networking.istio.io".into(),
        version: "v1".into(),
        api_version: "networking.istio.io/v1".into(),
        kind: "WorkloadEntry".into(),
        plural: "workloadentries".into(),
    };
    let entries: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let found = match entries.list_metadata(&ListParams::default()).await {
        Ok(found) => found,
        // A mesh without the kind has none.
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot list WorkloadEntries"),
    };
    let machine = |annotations: &BTreeMap<String, String>| {
        let is_there = !annotations.contains_key(labels::DISCONNECTED_AT);
        annotations
            .get(labels::MACHINE)
            .filter(|_| is_there)
            .cloned()
    };
    Ok(found
        .iter()
        .filter_map(|entry| machine(entry.annotations()))
        .collect())
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
            } => {
                let most = match self.stands_for {
                    Some(_) => LARGEST_OF_ONE,
                    None => proxy::LARGEST,
                };
                proxy::ask_inside(client, namespace, pod, ADMIN, path, most).await
            }
        }
    }

    /// The same; none of a pod that brings its own and has gone meanwhile.
    async fn ask_while_there(&self, path: &str) -> Result<Option<String>, Trouble> {
        match self.ask(path).await {
            Ok(text) => Ok(Some(text)),
            Err(_) if self.is_gone().await => Ok(None),
            Err(why) => Err(why),
        }
    }

    async fn is_gone(&self) -> bool {
        let (
            Some(_),
            Way::Pod {
                client,
                namespace,
                pod,
            },
        ) = (&self.stands_for, &self.way)
        else {
            return false;
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        match pods.get_opt(pod).await {
            Ok(Some(pod)) => {
                pod.metadata.deletion_timestamp.is_some() || own::of(&pod) != Some(Own::Runs)
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Whether it may speak of this pod's connections; `pod` where it is told apart from others of its namespace. One that
    /// stands for many may speak of all.
    pub(crate) fn may_speak_of(&self, namespace: &str, pod: Option<&str>) -> bool {
        let Some((of, name)) = &self.stands_for else {
            return true;
        };
        of == namespace && pod.is_none_or(|pod| pod == name)
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
/// Pods of one answer of the API server.
const PAGE: u32 = 500;
/// What the proxy of one pod has to say, with tens of thousands of connections: whoever answers in its stead shall not fill
/// our memory.
const LARGEST_OF_ONE: usize = 32 * 1024 * 1024;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A proxy that nobody asks, of this pod if it is of one.
    pub(crate) fn proxy(pod: Option<(&str, &str)>) -> Proxy {
        Proxy {
            name: String::new(),
            node: None,
            way: Way::Address(String::new()),
            stands_for: pod.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())),
        }
    }

    #[test]
    fn of_two_ztunnels_of_a_node_the_one_is_asked_that_serves() {
        let pod = |name: &str, ready: &str, phase: &str, deleted: Option<&str>| -> Pod {
            let conditions = serde_json::json!([{ "type": "Ready", "status": ready }]);
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": name, "deletionTimestamp": deleted },
                "spec": { "nodeName": "n1", "containers": [] },
                "status": { "phase": phase, "conditions": conditions },
            }))
            .unwrap()
        };
        let asked = |pods: [Pod; 2]| by_node(&pods).remove("n1").unwrap();
        let serves = || pod("serves", "True", "Running", None);
        let comes = || pod("comes", "False", "Pending", None);
        let goes = || pod("goes", "True", "Running", Some("2026-01-01T00:00:00Z"));
        for found in [
            asked([serves(), comes()]),
            asked([comes(), serves()]),
            asked([serves(), goes()]),
            asked([goes(), serves()]),
        ] {
            assert_eq!(found, "serves");
        }
        assert_eq!(asked([goes(), comes()]), "goes");
    }

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
    fn the_proxy_that_a_pod_brings_speaks_for_that_pod_alone() {
        let own = proxy(Some(("shop", "own")));
        assert!(own.may_speak_of("shop", Some("own")) && own.may_speak_of("shop", None));
        assert!(!own.may_speak_of("shop", Some("web")) && !own.may_speak_of("bank", Some("own")));
        assert!(!own.may_speak_of("bank", None));
        assert!(proxy(None).may_speak_of("bank", Some("web")));
    }

    #[test]
    fn what_means_something_in_a_query_is_escaped() {
        assert_eq!(encoded("shop/web:80"), "shop/web:80");
        assert_eq!(encoded("a&b=c d%"), "a%26b%3Dc%20d%25");
    }
}
