//! A machine that is no pod: a network of its own behind a node, with packet rules, a ztunnel and an application, that nothing of
//! Kubernetes knows.
//!
//! Its link ends at the node, whose routes lead to the pods, as those of a company's network would; the other nodes are told the way.
//! Its programs are those that the node runs for the mesh, its control plane is reached at the addresses of istiod's pods: nobody
//! translates, and it is seen as who it is.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};

use crate::{
    cluster::Cluster,
    mesh::{Part, SYSTEM},
    node::Node,
    pod::{Answer, Pod, Said},
    wait::eventually,
};

/// The machine.
pub struct Vm {
    cluster: Cluster,
    node: Node,
    /// Of its network namespace, its files and its link.
    id: String,
    /// Where it is.
    pub address: String,
    gateway: String,
    range: String,
}

impl Vm {
    /// Makes it behind a node; `number` is no other machine's.
    ///
    /// # Errors
    /// What could not be made. What was is left to [`Vm::remove`].
    pub fn new(cluster: &Cluster, node: &Node, number: u8) -> Self {
        Self {
            cluster: cluster.clone(),
            node: node.clone(),
            id: format!("e2e-vm{number}"),
            address: format!("10.231.{number}.2"),
            gateway: format!("10.231.{number}.1"),
            range: format!("10.231.{number}.0/30"),
        }
    }

    /// Its link, its files and its packet rules.
    pub async fn set_up(&self) -> Result<()> {
        let Self {
            id,
            address,
            gateway,
            range,
            ..
        } = self;
        let roots = self.roots().await?;
        let make = format!(
            "set -e; ip netns add {id}; ip link add {id} type veth peer name eth0 netns {id}\n\
             ip address add {gateway}/30 dev {id}; ip link set {id} up\n\
             ip -n {id} address add {address}/30 dev eth0; ip -n {id} link set eth0 up; ip -n {id} link set lo up\n\
             ip -n {id} route add default via {gateway}\n\
             mkdir -p -m 700 /etc/netns/{id} /run/{id}\n\
             echo 'nameserver 10.96.0.10' >/etc/netns/{id}/resolv.conf\n\
             touch /etc/netns/{id}/hosts\n\
             cat >/run/{id}/root-cert.pem <<END\n{roots}\nEND\n\
             cp /proc/$({ztunnel})/root/usr/local/bin/ztunnel /run/{id}/ztunnel\n\
             ip netns exec {id} chroot /proc/$({agent})/root /usr/local/bin/ambit-cni-agent capture up",
            ztunnel = process("ztunnel"),
            agent = process("ambit-cni-agent"),
        );
        self.node
            .sh(&make)
            .await?
            .success()
            .context("the machine")?;
        let via = self.node.address();
        for other in self.others() {
            let route = format!("ip route replace {range} via {via}");
            other.sh(&route).await?.success()?;
        }
        self.knows_the_control_plane().await
    }

    /// Learns where istiod is, as of a name server.
    pub async fn knows_the_control_plane(&self) -> Result<()> {
        let (id, names) = (&self.id, self.control_plane().await?);
        let line = format!("printf '{names}127.0.0.1 localhost\\n' >/etc/netns/{id}/hosts");
        self.node.sh(&line).await?.success().map(drop)
    }

    /// Everything of it goes, also what was half made.
    pub async fn remove(&self) -> Result<()> {
        let Self { id, range, .. } = self;
        for other in self.others() {
            other.sh(&format!("ip route del {range}; true")).await?;
        }
        let gone = format!(
            "for file in /run/{id}/*.pid; do kill -9 $(cat $file); done 2>/dev/null\n\
             ip link del {id}; ip netns del {id}; rm -rf /run/{id} /etc/netns/{id}; true"
        );
        self.node.sh(&gone).await.map(drop)
    }

    /// Lays a join token where its proxy looks for it.
    pub async fn give_token(&self, token: &str) -> Result<()> {
        let id = &self.id;
        let lay = format!(
            "umask 077; printf %s '{}' >/run/{id}/join-token",
            token.trim()
        );
        self.node.sh(&lay).await?.success().map(drop)
    }

    /// Whether its application is well, by the file that its probe looks for.
    pub async fn is_well(&self, well: bool) -> Result<()> {
        let verb = if well { "touch" } else { "rm -f" };
        let line = format!("{verb} {}", self.well());
        self.node.sh(&line).await?.success().map(drop)
    }

    /// That file.
    pub fn well(&self) -> String {
        format!("/run/{}/well", self.id)
    }

    /// Starts its application, a server of ours of this name.
    pub async fn serve(&self, name: &str) -> Result<()> {
        self.start("app", &format!("/opt/e2e/app serve --name {name}"))
            .await
    }

    /// Starts its proxy, for the workload `whom` (`namespace/name/account`), with what it keeps in a folder `membership`.
    pub async fn proxy(&self, whom: &str, membership: &str) -> Result<()> {
        let run = format!("/run/{}", self.id);
        let line = format!(
            "env PROXY_MODE=dedicated PROXY_WORKLOAD_INFO={whom} AMBIT_JOIN_TOKEN={run}/join-token AMBIT_MEMBERSHIP_DIR={run}/{membership} \
             AMBIT_EXEC_PROBES=true XDS_ADDRESS=https://istiod.{SYSTEM}.svc:15012 XDS_ROOT_CA={run}/root-cert.pem RUST_LOG=info \
             {run}/ztunnel proxy ztunnel"
        );
        self.start("ztunnel", &line).await
    }

    /// Ends its proxy; what it carries is refused then.
    pub async fn end_proxy(&self) -> Result<()> {
        let id = &self.id;
        let end = format!(
            "kill $(cat /run/{id}/ztunnel.pid); while [ -e /proc/$(cat /run/{id}/ztunnel.pid) ]; do sleep 0.1; done"
        );
        self.node.sh(&end).await?.success().map(drop)
    }

    /// Waits until its proxy has logged this.
    pub async fn says(&self, text: &str) -> Result<()> {
        let id = &self.id;
        eventually(&format!("the machine's proxy says {text:?}"), || async {
            let said = self
                .node
                .sh(&format!("tail -n 40 /run/{id}/ztunnel.log"))
                .await?;
            ensure!(said.out.contains(text), "{}", said.out);
            Ok(())
        })
        .await
    }

    /// One HTTP request from it.
    pub async fn get(&self, url: &str) -> Result<Said> {
        let id = &self.id;
        let line =
            format!("ip netns exec {id} curl --silent --show-error --fail --max-time 5 {url}");
        self.node.sh(&line).await
    }

    /// Waits until its requests are answered.
    pub async fn reaches(&self, url: &str) -> Result<Answer> {
        eventually(&format!("the machine reaches {url}"), || async {
            let text = self.get(url).await?.success()?;
            serde_json::from_str(&text).with_context(|| format!("{url} answered {text}"))
        })
        .await
    }

    /// Waits until its requests are refused, and not for lack of time.
    pub async fn is_refused(&self, url: &str) -> Result<()> {
        eventually(&format!("the machine is refused at {url}"), || async {
            let said = self.get(url).await?;
            ensure!(!said.success, "answered: {}", said.out);
            ensure!(!said.err.contains("timed out"), "timed out instead");
            Ok(())
        })
        .await
    }

    async fn start(&self, name: &str, line: &str) -> Result<()> {
        let id = &self.id;
        let start = format!(
            "setsid ip netns exec {id} {line} </dev/null >>/run/{id}/{name}.log 2>&1 & echo $! >/run/{id}/{name}.pid"
        );
        self.node.sh(&start).await?.success().map(drop)
    }

    fn others(&self) -> impl Iterator<Item = &Node> {
        let workers = self.cluster.workers().iter();
        workers.filter(|node| node.name != self.node.name)
    }

    async fn roots(&self) -> Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), SYSTEM);
        let map = maps.get("istio-ca-root-cert").await?;
        let mut data = map.data.unwrap_or_default();
        data.remove("root-cert.pem").context("no roots")
    }

    /// A line of `/etc/hosts` for each of istiod's pods.
    async fn control_plane(&self) -> Result<String> {
        let pods = self.cluster.pods(SYSTEM, Part::Istiod.labels()).await?;
        let mut lines = String::new();
        for pod in &pods {
            let v4 = Pod::of(&self.cluster, pod)?;
            let v4 = v4.ips.into_iter().find(|ip| !ip.contains(':'));
            let v4 = v4.with_context(|| format!("{} has no IPv4 address", pod.name_any()))?;
            lines += &format!("{v4} istiod.{SYSTEM}.svc\\n");
        }
        Ok(lines)
    }
}

/// A line of shell that prints the id of a process of the mesh on this node.
fn process(program: &str) -> String {
    format!(
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in /usr/local/bin/{program}) echo ${{p#/proc/}}; break;; esac; done"
    )
}
